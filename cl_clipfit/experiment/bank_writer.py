"""What each task of a run trained, written into its bank as soon as the task ends."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from torch import Tensor

from cl_clipfit.bank.routing import class_statistics
from cl_clipfit.bank.store import DeltaBank
from cl_clipfit.data.streams import Scenario
from cl_clipfit.experiment.run_plan import RunPlan
from cl_clipfit.runtime.out_of_memory import encode_images
from cl_clipfit.storage.run_folder import RunFolder
from cl_clipfit.training.strategy import CLIPStrategy

STATISTICS_IMAGES = 2000  # per task: enough for its means, little beside its training


class BankWriter:
    """Writes the bank of a run that trains; of others it writes nothing.

    Args:
        folder: of the run.
        plan: its recipe is None where nothing trains.
        strategy: the method.
        scenario: the stream of tasks.
    """

    def __init__(
        self, folder: RunFolder, plan: RunPlan, strategy: CLIPStrategy, scenario: Scenario
    ) -> None:
        self.folder, self.strategy, self.scenario = folder, strategy, scenario
        self.label = plan.label
        self.writes = plan.recipe is not None and strategy.model.identity is not None
        self.bank: DeltaBank | None = None

    def open(self, finished: int | None) -> None:
        """Start the bank, or reopen it with the tasks that a saved state counts as finished.

        Args:
            finished: tasks of the run that is resumed; None starts an empty bank.
        """
        identity, path = self.strategy.model.identity, self.folder.path / "bank"
        if not self.writes or identity is None:
            return
        if finished is None:
            templates = self.scenario.templates
            self.bank = DeltaBank.create(path, asdict(identity), self.label, templates)
        else:
            self.bank = DeltaBank.open(path)
            self.bank.keep(finished)
            self.bank.verify()

    def append(self, task: int, parents: Sequence[str], base: Mapping[str, Tensor] | None) -> None:
        """Put what a task trained into the bank.

        Args:
            task: counted from 1.
            parents: what its weights started from.
            base: the weights that were merged into the task's own, where there are such.
        """
        if self.bank is None:
            return
        classes = [self.scenario.class_names[c] for c in self.scenario.task_classes[task - 1]]
        sources = [*parents, *([f"task-{task:03d}-host"] if base else [])]
        self.bank.append(self.strategy.selection, classes, sources, base, self._statistics(task))

    def verify(self) -> None:
        """Check that no file of an earlier task is gone or changed."""
        if self.bank is not None:
            self.bank.verify()

    def _statistics(self, task: int) -> dict[str, Tensor]:
        """Summarise the task's training images as zero-shot CLIP sees them, to route by."""
        # Encoded here, even if another method has encoded all of them: in other batches, whose
        # last bits differ, and a bank does not depend on the methods that run beside it.
        strategy, experience = self.strategy, self.scenario.of_task(task - 1)
        images, labels = strategy.task_sample(STATISTICS_IMAGES, experience, by_class=True)
        with strategy.model.pretrained_weights():
            features = encode_images(strategy, images)
        return class_statistics(features, labels)
