"""Methods that merge what a host tuned in each task into one set of weights."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from cl_clipfit.config.options import Options
from cl_clipfit.methods.hosted import HostedStrategy
from cl_clipfit.training.features import Workload

Values = dict[str, Tensor]
Start = Literal["tuned", "merged", "zero-shot"]
_START = "where each task starts: at the weights tuned last, at the merged ones, or at zero-shot"


class MergingOptions(Options):
    """Settings of methods that merge; other settings of their label go to the host."""

    host: str = Field("clipfit", description="the method that tunes each task")
    start: Start = Field("tuned", description=_START)


class ApartOptions(MergingOptions):
    """Settings of methods whose papers merge models that know nothing of each other."""

    start: Start = Field("zero-shot", description=f"{_START}; zero-shot is the paper's")


class MergingStrategy(HostedStrategy):
    """Tune a host on every task, and classify with the merge of what the tasks tuned.

    A method implements `merge_task`. After a task the model holds the merged weights; `start` says
    from which weights the next one is tuned. A delta is relative to zero-shot CLIP always.

    Args:
        **kwargs: as in `HostedStrategy`.

    Attributes:
        tuned: what the host tuned in the last task; None before the first task.
        total: what a method that needs no more than one set of values keeps from task to task.
    """

    host_is = "merged"
    options_class: ClassVar[type[Options]] = MergingOptions
    sample: ClassVar[str | None] = None
    """The option that says how many images of a task are read again after it; None: no image."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tuned: Values | None = None
        self.total: Values | None = None

    @abstractmethod
    def merge_task(self, tuned: Values) -> Values:
        """Return the merged weights of tasks 1 to `self.tasks_seen`.

        Args:
            tuned: values of the selection that the host has just tuned; the model still holds them.
        """

    def select(self) -> None:
        """Refuse a host of which it is not known where zero-shot CLIP is."""
        super().select()
        self.zero_shot_point()

    def before_task(self) -> None:
        """Load the weights that the task starts from."""
        if self.tuned is not None and self.merge.start != "merged":
            # Not the zero-shot point, where an adapter may have no gradient.
            first = {name: self.model.pretrained_values[name] for name in self.selection}
            self.model.load_values(self.tuned if self.merge.start == "tuned" else first)
        super().before_task()

    def after_task(self) -> None:
        """Merge what the host tuned, and load the result."""
        super().after_task()
        self.tuned = self.current_values()
        self.model.load_values(self.merge_task(self.tuned))

    def compared(self) -> dict[str, Mapping[str, Tensor]]:
        """Return what the host tuned last, unmerged."""
        return {**super().compared(), **({"host": self.tuned} if self.tuned else {})}

    def workload(self) -> Workload:
        """Add the scores of the host, and the images that are read again after a task."""
        work = super().workload()
        sampled = ((1, getattr(self.merge, self.sample)),) if self.sample else ()
        passes = work.test_passes + 1
        return replace(work, test_passes=passes, sampled=(*work.sampled, *sampled))
