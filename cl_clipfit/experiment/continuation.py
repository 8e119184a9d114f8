"""Continue a finished run: bring a longer stream's run to where the finished one ended."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cl_clipfit.bank.store import DeltaBank
from cl_clipfit.errors import UserError
from cl_clipfit.experiment.reopen import FinishedRun, load_head
from cl_clipfit.experiment.run_plan import RunPlan
from cl_clipfit.runtime.code_files import package_hash
from cl_clipfit.storage.files import read_bytes, write_atomic
from cl_clipfit.storage.history import read_history
from cl_clipfit.storage.run_folder import HISTORY
from cl_clipfit.storage.state_file import read_state, write_state
from cl_clipfit.training.snapshot import copied, foreign_plugins, put, take

if TYPE_CHECKING:
    from cl_clipfit.experiment.run import Run

_TIMES = ("train_seconds", "measure_seconds", "encode_seconds")


def why_not(plan: RunPlan) -> str:
    """Return why a run cannot be continued; "" if its method and those it builds on allow it."""
    if all(part.strategy.strategy_class().extends for part in (plan, *plan.bases)):
        return ""
    return (
        "it depends on all classes or tasks of the stream from the start, or on state that no run"
        " keeps: run the whole stream in one command, with --then FOLDER"
    )


def keep_state(run: "Run") -> None:
    """Write what a finished run needs to be continued, if its method learns by gradients.

    The weights of the selection are not repeated: they are those of the last task in the bank.
    """
    strategy = run.strategy
    keeps = run.journal is not None and run.bank.bank is not None and not why_not(run.plan)
    if not keeps or run.learner.origin is not None or foreign_plugins(strategy):
        return
    snapshot = take(strategy)
    values = {n: v for n, v in snapshot["values"].items() if n not in strategy.selection}
    state = {"snapshot": {**snapshot, "values": values}, "code": package_hash()}
    write_state(run.folder.path, state)


class Continuation:
    """What a finished run left: its bank, its history, and its state after the last task.

    Args:
        finished: the run.

    Raises:
        UserError: the run cannot be continued.
    """

    def __init__(self, finished: FinishedRun) -> None:
        path, cls = finished.path, finished.plan.cls
        if "merged" in finished.result:
            raise UserError(f"{path}: this run was merged from another one: extend that one")
        if text := why_not(finished.plan):
            raise UserError(f"{path}: {finished.result['label']} cannot be extended: {text}")
        self.path, self.result = path, finished.result
        self.bank: DeltaBank = finished.bank
        self.tasks = len(self.bank)
        self.snapshot: dict[str, Any] | None = None
        if cls.learning == "gradient":
            self.snapshot = read_state(path)["snapshot"]

    def copy_history(self, folder: Path) -> dict[str, Any]:
        """Copy the run's `history.jsonl` into a folder; return where it ended, as a checkpoint."""
        lines = read_history(self.path)
        steps = max((int(line.get("total_step", 0)) for line in lines), default=0)
        data = read_bytes(self.path / HISTORY) if lines else b""
        write_atomic(folder / HISTORY, data)
        return {"bytes": len(data), "before": steps, "rate": 0.0, "sums": []}

    def restore(self, run: "Run") -> None:
        """Fill the tables, the bank and the record of a run that has trained nothing yet.

        The weights of each task are scored again: on the longer stream, whose test images and
        classes are more. Then the strategy is put into the state after the last task.
        """
        record, result = run.record, self.result
        run.evaluator.evaluate()
        for task in range(1, self.tasks + 1):
            at = task - 1
            head = self._put_task(run, task)
            record.changes.append(result["change_by_layer"][at])
            record.kept_bytes.append(result["kept"]["bytes"][at] + head)
            run.evaluator.evaluate()
            run.progress.row(task, record.board.tables.seen[task])
        for name in _TIMES:
            setattr(record, name, [*result["timings"][name]])
        self._put_state(run)

    def _put_task(self, run: "Run", task: int) -> int:
        """Set the strategy to what it was after a task, and copy that into the bank.

        Returns:
            by how many bytes its head has grown, since there are more classes.
        """
        strategy, stored = run.strategy, self.bank.index["tasks"][task - 1]
        self._see(run, task)
        host: Mapping[str, Tensor] | None = None
        values: dict[str, Tensor] = {}
        if "values" in stored["files"]:
            values = self.bank.load(task)
            strategy.model.load_values(values)
        before = self.bank.load(task, "head") if "head" in stored["files"] else {}
        load_head(self.bank, task, strategy)
        if "host" in stored["files"]:
            host = self.bank.load(task, "host")
        statistics = self.bank.load(task, "statistics") if "statistics" in stored["files"] else None
        head, parents = strategy.head_state(), [*stored["parents"]]
        assert run.bank.bank is not None
        run.bank.bank.append(values, stored["classes"], parents, host, statistics, head)
        return _bytes(head) - _bytes(before)

    def _put_state(self, run: "Run") -> None:
        """Put the strategy into the state after the last task."""
        strategy = run.strategy
        self._see(run, self.tasks)
        strategy.tasks_seen = self.tasks
        if self.snapshot is not None:
            last = self.bank.index["tasks"][-1]["files"]
            values = self.bank.load(self.tasks) if "values" in last else {}
            snapshot = copied(self.snapshot)
            put(strategy, {**snapshot, "values": {**snapshot["values"], **values}})

    def _see(self, run: "Run", task: int) -> None:
        """Set the classes of a task, and of those before it."""
        brought, strategy = run.scenario.brought, run.strategy
        strategy.task_classes = list(brought[task - 1])
        seen = dict.fromkeys(label for labels in brought[:task] for label in labels)
        strategy.seen_classes = list(seen)


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
