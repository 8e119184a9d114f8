"""Runs as tasks of Ray, on this machine or a cluster whose nodes share no file system.

A run is done in a folder of its node, and comes back as a tar file through Ray's object store. A
task whose worker or node dies is started again by Ray: on the same node it resumes from the run's
checkpoints.
"""

import contextlib
import io
import os
import pickle
import secrets
import shutil
import signal
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cl_clipfit.runtime.signals import deferred
from cl_clipfit.storage.files import writing
from cl_clipfit.storage.result import RESULT, read_result
from cl_clipfit.sweep.engines import Event, Share, Work, needed, thread_variables
from cl_clipfit.sweep.job import Job, Outcome

_LOOK_SECONDS = 0.5
_RETRIES = 4


class RayTasks:
    """Works through jobs on a Ray cluster: RAY_ADDRESS, one started on this machine, or a new one.

    Args:
        share: cores (default 1) and GPUs of each run (default 1 where the cluster has any);
            `workers` limits how many runs are given to the cluster at a time.
        on_gpu: whether the runs may use a GPU.

    Raises:
        UserError: Ray is not installed.
    """

    def __init__(self, share: Share, on_gpu: bool) -> None:
        self.ray = needed("ray", "ray")
        self.share, self.on_gpu = share, on_gpu
        self.threads = share.threads or 1

    def events(self, jobs: Sequence[Job], work: Work) -> Iterator[Event]:
        """Yield what happens until every job has ended; closing the iterator cancels the rest."""
        waiting = [*reversed(jobs)]
        running: dict[Any, Job] = {}
        with self._cluster():
            task = self._task()
            try:
                while waiting or running:
                    while waiting and len(running) < (self.share.workers or len(jobs)):
                        job = replace(waiting.pop(), threads=self.threads)
                        running[task.remote(pickle.dumps((work, job)))] = job
                        yield Event(job, "started", "given to Ray")
                    with deferred():  # what a handler raises inside of Ray becomes a SystemError
                        ended, _ = self.ray.wait([*running], timeout=_LOOK_SECONDS)
                    for reference in ended:
                        job = running.pop(reference)
                        with deferred():
                            outcome = self._outcome(reference, job)
                        yield Event(job, "ended", outcome=outcome)
            finally:
                for reference in running:
                    with contextlib.suppress(Exception):  # it may have ended meanwhile
                        self.ray.cancel(reference, force=True)

    @contextlib.contextmanager
    def _cluster(self) -> Iterator[None]:
        """Connect to a cluster, unless this process is connected; keep this command's signals."""
        if self.ray.is_initialized():
            yield
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anyone
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with deferred():
                self.ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
                for number, handler in handlers.items():
                    with contextlib.suppress(ValueError):  # not the main thread
                        signal.signal(number, handler)
            yield
        finally:
            self.ray.shutdown()

    def _task(self) -> Any:
        """Return Ray's function for a run."""
        gpus = self.share.gpus
        if gpus is None:
            gpus = float(self.on_gpu and self.ray.cluster_resources().get("GPU", 0) >= 1)
        options = {
            "num_cpus": self.threads,
            "num_gpus": gpus if self.on_gpu else 0,
            "max_retries": _RETRIES,
            "runtime_env": {"env_vars": thread_variables(self.threads)},
        }
        return self.ray.remote(**options)(on_node)

    def _outcome(self, reference: Any, job: Job) -> Outcome:
        """Return what became of a task, after the run's folder has been unpacked."""
        try:
            outcome: Outcome = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            return Outcome("failed", text=f"Ray: {type(error).__name__}: {line}")
        if outcome.archive is not None:
            unpack(outcome.archive, job.output / outcome.folder)
        return replace(outcome, archive=None)


def on_node(payload: bytes) -> Outcome:
    """Do a run in a folder of this node, and return it with the run's folder in a tar file.

    Args:
        payload: the work and the job, pickled: PyTorch must not be imported with this module.
    """
    work, job = pickle.loads(payload)
    from cl_clipfit.data.fetch.download import cache_folder

    place = cache_folder() / "sweeps" / "runs" / job.key[:32]
    outcome: Outcome = work(replace(job, output=place), lambda text: None)
    if outcome.state == "stopped":  # with the node: Ray starts the task again
        os._exit(143)
    if outcome.state != "done":
        return outcome
    archive = pack(place / outcome.folder)
    shutil.rmtree(place, ignore_errors=True)
    return replace(outcome, archive=archive)


def pack(folder: Path) -> bytes:
    """Return a folder as a tar file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, arcname=".")
    return buffer.getvalue()


def unpack(archive: bytes, folder: Path) -> None:
    """Write a run's folder, all of it or nothing; a finished run that is there is kept.

    Raises:
        UserError: it cannot be written.
    """
    incoming = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    with writing(folder):
        try:
            incoming.mkdir(parents=True)
            with tarfile.open(fileobj=io.BytesIO(archive)) as file:
                file.extractall(incoming, filter="data")
            if read_result(folder / RESULT) is None:
                if folder.exists():  # an unfinished run of an earlier command
                    shutil.rmtree(folder)
                incoming.replace(folder)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
