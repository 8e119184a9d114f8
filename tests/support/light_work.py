"""Work that imports no PyTorch, for tests of engines."""

import os
import signal
from pathlib import Path

from cl_clipfit.sweep.engines import Report
from cl_clipfit.sweep.job import Job, Outcome


def light_work(job: Job, report: Report) -> Outcome:
    """Note a run in files; if a file says so, send a signal to this process first, once."""
    mark = job.output / f"signal-{job.key}"
    if mark.is_file():
        number = int(mark.read_text())
        mark.unlink()
        os.kill(os.getpid(), signal.Signals(number))
    report("here")
    folder = job.output / job.key
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpus.txt").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
    with Path(job.output / "done.txt").open("a") as file:
        file.write(f"{job.key} {os.environ.get('OMP_NUM_THREADS')}\n")
    return Outcome("done", folder=job.key)
