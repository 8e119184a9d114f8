"""Record loss terms, learning rate, time and memory while a run trains."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cl_clipfit.runtime.device import peak_memory_bytes
from cl_clipfit.runtime.lean_imports import lean_imports
from cl_clipfit.storage.history import HistoryFile
from cl_clipfit.training.snapshot import Snapshot

with lean_imports():
    from avalanche.core import SupervisedPlugin

if TYPE_CHECKING:
    from cl_clipfit.training.strategy import CLIPStrategy

Line = Mapping[str, Any]
_PER_TASK = 100  # steps that have a line of their own, about


class HistoryPlugin(SupervisedPlugin):
    """Avalanche plug-in that writes a run's `history.jsonl`; it writes nothing before `open`.

    Attributes:
        listeners: functions that receive every line, those of an earlier process too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.listeners: list[Callable[[Line], None]] = []
        self._file: HistoryFile | None = None
        self._every = 1  # steps from one line to the next
        self._rate = 0.0  # learning rate of the step
        self._before = 0  # steps of earlier tasks
        # Of the epoch so far, by the names of the terms: their sums, then the number of steps.
        self._sums: dict[tuple[str, ...], Tensor] = {}

    def open(self, file: HistoryFile, saved: Snapshot | None) -> None:
        """Begin a history, or continue it.

        Args:
            file: of the run.
            saved: what `state` returned when the checkpoint was written that the run resumes from.
        """
        self._file = file
        earlier = file.cut(int(saved["bytes"]) if saved else 0)
        for line in earlier:
            self._tell(line)
        if saved:
            self._before, self._rate = int(saved["before"]), float(saved["rate"])
            self._sums = {tuple(names): total for names, total in saved["sums"]}

    def state(self) -> Snapshot:
        """Write what is waiting to the disk, and return what a checkpoint holds of the history."""
        assert self._file is not None
        sums = [[list(names), total] for names, total in self._sums.items()]
        return {
            "bytes": self._file.flush(), "before": self._before, "sums": sums, "rate": self._rate,
        }  # fmt: skip

    def begin_task(self, steps: int) -> None:
        """Begin a task of so many steps; 0 if their number is not known."""
        self._every = max(1, steps // _PER_TASK) if steps else 10

    def end_task(self, task: int, steps: int, values: Line) -> None:
        """Add the line of a task, counted from 1; 0 is before training.

        Args:
            task: its number.
            steps: how many it took.
            values: what the line says.
        """
        if self._file is not None:
            self._before += steps
            self._add({"event": "task", "task": task, "total_step": self._before, **values})
            self._file.flush()

    def before_update(self, strategy: "CLIPStrategy", *args: object, **kwargs: object) -> None:
        """Note the learning rate of the step, before the schedule goes on.

        It is the recipe's, as the schedule has changed it; groups of parameters may have multiples.
        """
        assert strategy.scheduler is not None
        base, now = strategy.scheduler.base_lrs[0], strategy.optimizer.param_groups[0]["lr"]
        self._rate = strategy.recipe.lr * now / base if base else 0.0

    def after_training_iteration(
        self, strategy: "CLIPStrategy", *args: object, **kwargs: object
    ) -> None:
        """Add the terms of the step to the sums, and to the history if it is its turn."""
        if self._file is None:
            return
        self._sum(strategy)
        if strategy.task_steps % self._every == 0:
            self._write("step", strategy, strategy.read_terms())

    def after_training_epoch(
        self, strategy: "CLIPStrategy", *args: object, **kwargs: object
    ) -> None:
        """Add the means over the steps of an epoch."""
        if self._file is not None:
            self._write("epoch", strategy, self._means())
        self._sums.clear()

    def _sum(self, strategy: "CLIPStrategy") -> None:
        """Add a step to the sums, on the device; a step whose loss is NaN or infinite is not."""
        named = {"loss": strategy.loss, **strategy.terms, "plug-ins": strategy.plugin_loss}
        device = strategy.loss.device
        numbers = [v.detach().to(device, torch.float32).reshape(()) for v in named.values()]
        values = torch.stack([*numbers, torch.ones((), device=device)])
        counted = torch.where(values[0].isfinite(), values, 0.0)
        names = tuple(named)
        known = self._sums.get(names)
        self._sums[names] = counted if known is None else known.to(device) + counted

    def _means(self) -> dict[str, float]:
        """Return the means over the epoch; a term that a step does not have counts 0 in it."""
        totals: dict[str, float] = {}
        steps = 0.0
        for names, total in self._sums.items():
            *values, count = total.tolist()
            steps += count
            for name, value in zip(names, values, strict=True):
                totals[name] = totals.get(name, 0.0) + value
        means = {name: value / steps if steps else math.nan for name, value in totals.items()}
        if means.get("plug-ins") == 0:
            del means["plug-ins"]
        return means

    def _write(self, event: str, strategy: "CLIPStrategy", terms: dict[str, float]) -> None:
        journal = strategy.journal
        assert journal is not None
        numbers = {name: v if math.isfinite(v) else None for name, v in terms.items()}
        stage, epoch = journal.position
        self._add(
            {
                "event": event, "task": strategy.task_number, "stage": stage, "epoch": epoch,
                "step": strategy.task_steps, "total_step": self._before + strategy.task_steps,
                "lr": self._rate, "loss": numbers.pop("loss", None), "terms": numbers,
                "seconds": round(journal.seconds, 3),
                "peak_memory_bytes": peak_memory_bytes(strategy.device),
            }
        )  # fmt: skip

    def _add(self, line: Line) -> None:
        assert self._file is not None
        self._file.add(line)
        self._tell(line)

    def _tell(self, line: Line) -> None:
        for listener in self.listeners:
            listener(line)
