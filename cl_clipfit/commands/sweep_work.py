"""One run of a sweep, in a worker process of any engine."""

import os
import time
import warnings
from typing import Any

from filelock import FileLock
from pydantic import ValidationError

from cl_clipfit.commands.train import run_each
from cl_clipfit.config.command import RunConfig
from cl_clipfit.config.options import explain
from cl_clipfit.data.fetch.download import cache_folder
from cl_clipfit.errors import UserError
from cl_clipfit.evaluation.frozen_features import FrozenImages
from cl_clipfit.experiment.prepare import prepare
from cl_clipfit.report.results import Results
from cl_clipfit.runtime.progress import Progress
from cl_clipfit.runtime.signals import Stopped, graceful
from cl_clipfit.storage.files import write_atomic
from cl_clipfit.sweep.engines import Report
from cl_clipfit.sweep.job import Job, Outcome


def work(job: Job, report: Report) -> Outcome:
    """Do one run; whatever goes wrong in it is its outcome.

    Args:
        job: the run.
        report: receives how far it is.
    """
    import torch

    warnings.simplefilter("ignore")  # a run records its own
    torch.set_num_threads(job.threads)
    started = time.monotonic()

    def outcome(state: Any, text: str, folder: str = "") -> Outcome:
        return Outcome(state, folder, text, time.monotonic() - started)

    try:
        with graceful():
            config = RunConfig.model_validate({**job.settings, "output": job.output})
            prepare_node(job, config, report)
            (result,) = run_each(config, _Reporting(report))
        return outcome("done", accuracy(Results([result])), result.path.name)
    except Stopped as stopped:
        return outcome("stopped", f"stopped by {stopped}")
    except ValidationError as error:
        return outcome("failed", explain(error))
    except UserError as error:
        return outcome("failed", str(error))
    except Exception as error:  # an error of the code must not end the other runs
        if os.environ.get("CL_CLIPFIT_DEBUG"):
            raise
        return outcome("failed", f"{type(error).__name__}: {error}")


def accuracy(results: Results) -> str:
    """Return the average accuracy of a run in words."""
    value = results[0].metrics.get("average_accuracy")
    return "finished" if value is None else f"average accuracy {value:z.1f} %"


def prepare_node(job: Job, config: RunConfig, report: Report) -> None:
    """Fetch weights and data and encode images, once per machine; other workers wait for it.

    What is fetched and encoded is in the caches of this machine; a mark beside them says so.

    Raises:
        UserError: data or weights cannot be had.
    """
    if job.encodes is None:
        return
    folder = cache_folder() / "sweeps"
    mark = folder / f"{job.shared[:32]}.prepared"
    if mark.is_file():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # the run will say what cannot be written, if it needs it
        return
    report("waiting for data and weights")
    with FileLock(folder / f"{job.shared[:32]}.lock"):
        if mark.is_file():
            return
        report("preparing data and weights")
        _prepare(config, job.encodes, _Reporting(report))
        write_atomic(mark, f"{job.name}\n")


def _prepare(config: RunConfig, encodes: bool, progress: Progress) -> None:
    prepared = prepare(config, progress)
    if not encodes:
        return
    plan = prepared.plans[0]
    scenario = prepared.scenario(prepared.stream.shots_seed(plan.seed))
    FrozenImages(prepared.model, prepared.stream.compute.device, progress).encode(
        scenario, prepared.probes, plan.reads_train_images_as_they_are, plan.cls.class_tokens
    )


class _Reporting(Progress):
    """Pass on what a screen with many runs has room for."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._last = 0.0

    def transfer(self, label: str, done: int, total: int | None) -> None:
        self._now_and_then(f"{label} {done / 1e6:.0f} MB")

    def count(self, label: str, done: int, total: int) -> None:
        self._now_and_then(f"{label} {done:,} of {total:,}")

    def start_task(self, task: int, tasks: int, epochs: int, steps: int) -> None:
        self._report(f"task {task}/{tasks}")

    def end_task(self, task: int, tasks: int, accuracy: float | None, seconds: float) -> None:
        shown = "" if accuracy is None else f", {accuracy:z.1f} % so far"
        self._report(f"task {task}/{tasks} done{shown}")

    def _now_and_then(self, text: str) -> None:
        if time.monotonic() - self._last > 1:
            self._last = time.monotonic()
            self._report(text)
