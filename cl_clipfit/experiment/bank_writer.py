"""Write what each task of a run trained into its bank, as soon as the task ends."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from torch import Tensor

from cl_clipfit.bank.routing import class_statistics
from cl_clipfit.bank.store import DeltaBank
from cl_clipfit.data.streams import Scenario
from cl_clipfit.experiment.run_plan import RunPlan
from cl_clipfit.runtime.out_of_memory import encode_images
from cl_clipfit.storage.run_folder import BANK, RunFolder
from cl_clipfit.training.strategy import CLIPStrategy

STATISTICS_IMAGES = 2000  # per task: enough for its means, and cheap compared with training


class BankWriter:
    """Writes the bank of a run; does nothing for a run that does not learn.

    Args:
        folder: of the run.
        plan: of the run; its recipe is None if nothing trains.
        strategy: the method.
        scenario: the stream of tasks.
    """

    def __init__(
        self, folder: RunFolder, plan: RunPlan, strategy: CLIPStrategy, scenario: Scenario
    ) -> None:
        self.folder, self.strategy, self.scenario = folder, strategy, scenario
        self.label = plan.label
        # Of several processes one writes, and all encode.
        self.encodes = strategy.learning != "none" and strategy.model.identity is not None
        self.writes = self.encodes and folder.writes
        self.bank: DeltaBank | None = None

    def open(self, finished: int | None) -> None:
        """Create the bank, or reopen it with the tasks that a checkpoint counts as finished.

        Args:
            finished: finished tasks of a resumed run; None creates an empty bank.
        """
        identity, path = self.strategy.model.identity, self.folder.path / BANK
        if not self.writes or identity is None:
            return
        if finished is None:
            templates = self.scenario.templates
            self.bank = DeltaBank.create(path, asdict(identity), self.label, templates)
        else:
            self.bank = DeltaBank.open(path)
            self.bank.keep(finished)
            self.bank.verify()

    def append(self, task: int, parents: Sequence[str], host: Mapping[str, Tensor] | None) -> None:
        """Add what a task trained to the bank.

        Args:
            task: counted from 1.
            parents: the weights that it started from.
            host: the weights that were merged into those of the task, if any.
        """
        if not self.encodes:
            return
        classes = [self.scenario.class_names[c] for c in self.scenario.task_classes[task - 1]]
        sources = [*parents, *([f"task-{task:03d}-host"] if host else [])]
        trained, head = self.strategy.selection, self.strategy.head_state()
        if not (trained or head):
            return
        statistics = self._statistics(task) if trained else None
        if self.bank is None:
            return
        self.bank.append(trained, classes, sources, host, statistics, head)

    def verify(self) -> None:
        """Check that no file of an earlier task is missing or changed."""
        if self.bank is not None:
            self.bank.verify()

    def _statistics(self, task: int) -> dict[str, Tensor]:
        """Return statistics of the zero-shot features of the task's training images, for routing.

        The images are encoded here even if all of them have been encoded for another method: in
        other batches the last bits differ, and a bank must not depend on the other methods of a
        command.
        """
        strategy, experience = self.strategy, self.scenario.of_task(task - 1)
        images, labels = strategy.task_sample(STATISTICS_IMAGES, experience, by_class=True)
        with strategy.model.pretrained_weights():
            features = encode_images(strategy, images)
        return class_statistics(features, labels)
