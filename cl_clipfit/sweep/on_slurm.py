"""Runs as jobs of SLURM, in arrays, through submitit; without SLURM as processes of this machine.

The folders of runs are on a file system that all nodes share. A job that is preempted or runs out
of time is queued again by submitit, and resumes from the last checkpoints of its runs.
"""

import contextlib
import os
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cl_clipfit.errors import UserError
from cl_clipfit.sweep.engines import (
    Event,
    Share,
    Work,
    cores,
    environment,
    needed,
    thread_variables,
)
from cl_clipfit.sweep.job import Job, Outcome

LOGS = "sweep-logs"  # in the output folder: what submitit and the jobs write
_LOOK_SECONDS = 0.5
_ATTEMPTS = 3  # of a job that ends without a result: it was killed, or its node failed
# submitit's own limit is 5 minutes. Jobs that run out of time are queued again, this often.
_DEFAULTS = {"timeout_min": 240}
_TIMEOUTS = 100
# Parameters that submitit has for every cluster; all others are SLURM's.
_SHARED = ("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")


class SlurmArray:
    """Works through jobs in an array of SLURM.

    Args:
        output: folder of all run folders.
        share: what each run gets of a node; `workers` limits how many jobs run at a time.
        parameters: of the jobs, as `partition`, `account`, `timeout_min`; and `runs_per_job`.
        on_gpu: whether the runs may use a GPU.

    Raises:
        UserError: submitit is not installed, or a parameter is unknown.
    """

    def __init__(
        self, output: Path, share: Share, parameters: Mapping[str, Any], on_gpu: bool
    ) -> None:
        submitit = needed("submitit", "slurm")
        given = {**_DEFAULTS, **parameters}
        self.runs_per_job = given.pop("runs_per_job", 1)
        if not (isinstance(self.runs_per_job, int) and self.runs_per_job >= 1):
            raise UserError(f"slurm.runs_per_job: {self.runs_per_job}: expected at least 1")
        folder = output / LOGS
        self.executor = submitit.AutoExecutor(folder, slurm_max_num_timeout=_TIMEOUTS)
        self.is_slurm = self.executor.cluster == "slurm"
        self.threads = share.threads or given.get("cpus_per_task") or 1
        given.setdefault("cpus_per_task", self.threads)
        gpus = share.gpus if share.gpus is not None else float(on_gpu and self.is_slurm)
        if gpus != int(gpus):
            raise UserError(f"--gpus {gpus:g}: SLURM gives whole GPUs: set slurm.runs_per_job")
        if gpus:  # clusters without GPUs refuse to be asked for none
            given.setdefault("gpus_per_node", int(gpus))
        self.at_a_time = share.workers or max(1, cores() // self.threads)
        if self.is_slurm:  # which has a limit of its own
            given.setdefault("array_parallelism", share.workers or 256)
        names = {key: key if key in _SHARED else f"slurm_{key}" for key in given}
        try:
            self.executor.update_parameters(**{names[key]: value for key, value in given.items()})
        except (NameError, AssertionError, ValueError, TypeError) as error:
            raise UserError(f"slurm: {str(error).splitlines()[0]}") from error

    def events(self, jobs: Sequence[Job], work: Work) -> Iterator[Event]:
        """Yield what happens until every job has ended; closing the iterator cancels all of them.

        A machine without SLURM has no queue: there, a job is started when another one has ended.
        """
        bundles = [
            Bundle(work, jobs[at : at + self.runs_per_job], self.threads)
            for at in range(0, len(jobs), self.runs_per_job)
        ]
        waiting = [(bundle, 1) for bundle in reversed(bundles)]
        running: dict[Any, tuple[Bundle, int]] = {}
        try:
            while waiting or running:
                room = len(waiting) if self.is_slurm else self.at_a_time - len(running)
                batch = [waiting.pop() for _ in range(min(room, len(waiting)))]
                for handle, entry in zip(self._submit(batch), batch, strict=True):
                    running[handle] = entry
                    for job in entry[0].jobs:
                        yield Event(job, "started", f"job {handle.job_id}")
                time.sleep(_LOOK_SECONDS)
                for handle in [handle for handle in running if handle.done()]:
                    bundle, attempt = running.pop(handle)
                    outcomes = _outcomes(handle, bundle)
                    if outcomes is None and attempt < _ATTEMPTS:
                        waiting.append((bundle, attempt + 1))
                        continue
                    for job, outcome in zip(bundle.jobs, outcomes or bundle.lost(), strict=True):
                        yield Event(job, "ended", outcome=outcome)
        finally:
            for handle in running:
                with contextlib.suppress(Exception):  # it may have ended meanwhile
                    handle.cancel()

    def _submit(self, batch: Sequence[tuple["Bundle", int]]) -> list[Any]:
        """Put jobs into the queue; return submitit's handle of each."""
        if not batch:
            return []
        with environment(self.threads):
            try:
                with self.executor.batch():
                    return [self.executor.submit(bundle) for bundle, _ in batch]
            except Exception as error:  # sbatch's message is the last line
                lines = str(error).strip().splitlines() or [type(error).__name__]
                raise UserError(f"SLURM does not take the jobs: {lines[-1]}") from error


class Bundle:
    """The runs of one job, one after another; what submitit calls on a node.

    It carries them as bytes: PyTorch must not be imported before the number of cores is set.
    """

    def __init__(self, work: Work, jobs: Sequence[Job], threads: int) -> None:
        self.payload, self.threads = pickle.dumps((work, [*jobs])), threads

    @property
    def jobs(self) -> list[Job]:
        """Return the runs."""
        return list(pickle.loads(self.payload)[1])

    def __call__(self) -> list[Outcome]:
        """Do the runs; those that an earlier attempt finished are only read."""
        os.environ.update(thread_variables(self.threads))
        work, jobs = pickle.loads(self.payload)
        outcomes = []
        for job in jobs:
            outcome = work(replace(job, threads=self.threads), print)  # into the job's log
            if outcome.state == "stopped":  # by SLURM, which will start the job again if it may
                os._exit(143)
            outcomes.append(outcome)
        return outcomes

    def checkpoint(self) -> Any:
        """Return what submitit puts into the queue again: all of it, since runs resume."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def lost(self) -> list[Outcome]:
        """Return the outcomes of runs whose job ended without a result."""
        text = f"its job ended without a result, {_ATTEMPTS} times; see the files in {LOGS}"
        return [Outcome("failed", text=text) for _ in self.jobs]


def _outcomes(handle: Any, bundle: Bundle) -> list[Outcome] | None:
    """Return what became of the runs of a job that ended; None if it left no result."""
    try:
        return list(handle.result())
    except Exception as error:
        if type(error).__name__ != "FailedJobError":  # UncompletedJobError: it was killed
            return None
        line = (str(error).strip().splitlines() or ["?"])[-1]
        return [Outcome("failed", text=line) for _ in bundle.jobs]
