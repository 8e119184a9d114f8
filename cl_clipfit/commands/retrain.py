"""Train the first task of a finished run again, and compare the bits: `run.py verify --replay`."""

import tempfile
from pathlib import Path

import torch

from cl_clipfit.errors import UserError
from cl_clipfit.evaluation.frozen_features import FrozenImages
from cl_clipfit.experiment.reopen import open_run
from cl_clipfit.experiment.run import Run
from cl_clipfit.runtime.progress import Progress
from cl_clipfit.storage.run_folder import RunFolder


def retrain_first_task(path: Path, progress: Progress) -> list[str]:
    """Train task 1 of a run again; later tasks would need the state in which they started.

    Args:
        path: the run's folder.
        progress: receives progress and notes.

    Returns:
        a sentence for every tensor that differs from the bank's in any bit.

    Raises:
        UserError: the run cannot be opened, or was merged from another one.
    """
    finished = open_run(path, progress)
    if "merged" in finished.result:
        raise UserError(f"{path}: this run was merged, not trained: verify --replay its host")
    prepared, plan = finished.prepared, finished.plan
    encoder = FrozenImages(prepared.model, prepared.stream.compute.device, progress)
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place), "replay", plan.strategy.name, plan.seed, "")
        run = Run(
            prepared.stream, plan, finished.scenario, prepared.model, prepared.probes, folder,
            progress, encoder,
        )  # fmt: skip
        progress.start_run(f"{plan.label} seed {plan.seed}, task 1 again")
        try:
            retrained = run.learn_first()
        finally:
            progress.stop()
    written = finished.bank.load(1)
    return [
        f"{name} differs from the bank's by up to {_distance(retrained[name], value):.3g}"
        for name, value in written.items()
        if not torch.equal(retrained[name].cpu(), value)
    ]


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.cpu() - other).abs().max())
