"""What SLURM is asked for, and what happens when it takes a node away; its commands are fakes."""

import signal
import sys
import time
from pathlib import Path

import pytest

from cl_clipfit.sweep.engines import Share
from cl_clipfit.sweep.job import Job
from cl_clipfit.sweep.on_slurm import LOGS, SlurmArray
from tests.support.light_work import light_work

pytest.importorskip("submitit")

ENVIRONMENT = (
    "SLURM_JOB_NUM_NODES=1 SLURM_NTASKS=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0"
    " SLURM_JOB_NODELIST=localhost"
)
COMMANDS = {
    "sbatch": 'cp "${@: -1}" job.sh; for task in 0 1; do ./task 77 $task; done;'
    ' echo "Submitted batch job 77"',
    "task": f"{ENVIRONMENT} SLURM_JOB_ID=$1 SLURM_ARRAY_JOB_ID=$1 SLURM_ARRAY_TASK_ID=$2"
    " setsid bash job.sh > /dev/null 2>&1 < /dev/null &",
    "scontrol": 'echo "$@" >> requeued.txt; ./task ${2%_*} ${2#*_}',
    "srun": 'while [ "$1" != "$PYTHON" ]; do shift; done; "$@"',
    "sacct": "echo 'JobID|State|NodeList'",
    "scancel": 'echo "$@" >> cancelled.txt',
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put fakes of SLURM's commands on the path; return the folder where they leave traces."""
    for name, script in COMMANDS.items():
        file = tmp_path / "fakes" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/bash\ncd {file.parent}\n{script}\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'fakes'}:/usr/bin:/bin")
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    return tmp_path / "fakes"


def jobs(output: Path) -> list[Job]:
    return [Job(f"{n}", "", f"run {n}", "", {}, output) for n in range(3)]


def test_runs_are_an_array_and_a_preempted_job_is_queued_again(slurm: Path, tmp_path: Path) -> None:
    parameters = {"partition": "gpu", "runs_per_job": 2, "cpus_per_task": 3, "timeout_min": 90}
    array = SlurmArray(tmp_path, Share(workers=1), parameters, on_gpu=True)
    assert array.is_slurm
    (tmp_path / "signal-1").write_text(str(int(signal.SIGUSR2)))  # 90 s before the node is taken
    events = [*array.events(jobs(tmp_path), light_work)]
    ended = {event.job.key: event.outcome.state for event in events if event.outcome}
    assert ended == {"0": "done", "1": "done", "2": "done"}
    # The first job is repeated as a whole, on as many cores as were asked for.
    lines = sorted((tmp_path / "done.txt").read_text().splitlines())
    assert lines == ["0 3", "0 3", "1 3", "2 3"]
    assert (slurm / "requeued.txt").read_text() == "requeue 77_0\n"
    asked = (slurm / "job.sh").read_text()
    for line in ("array=0-1%1", "partition=gpu", "cpus-per-task=3", "time=90", "gpus-per-node=1"):
        assert f"#SBATCH --{line}\n" in asked
    assert not (slurm / "cancelled.txt").exists()


def test_jobs_are_cancelled_with_the_command(slurm: Path, tmp_path: Path) -> None:
    (slurm / "srun").write_text("#!/bin/bash\n")  # the jobs leave no result
    array = SlurmArray(tmp_path, Share(), {"runs_per_job": 2}, on_gpu=False)
    events = array.events(jobs(tmp_path), light_work)
    assert next(events).text == "job 77_0"
    events.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not (slurm / "cancelled.txt").exists():
        time.sleep(0.05)
    assert "77_0" in (slurm / "cancelled.txt").read_text()
    assert "gpus" not in (slurm / "job.sh").read_text() and (tmp_path / LOGS).is_dir()
