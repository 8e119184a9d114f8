"""Joint: any method on the images of all tasks at once, an upper bound of continual learning."""

from dataclasses import replace

from cl_clipfit import HostedStrategy, HostOptions, Workload

NAME = "joint"
GROUP = "bounds"
PAPER = "the upper bound of the field; as Avalanche's JointTraining"
NEEDS = "all images of all tasks, later ones as well"
EXEMPLARS = "all"


class Joint(HostedStrategy):
    """Train the host in the first task on the images and classes of all tasks; then nothing more.

    The epochs are those of the host, so that it takes as many steps as the host does on the whole
    stream; cumulative training of T tasks takes (T + 1) / 2 times as many, and with few epochs may
    end above this bound. All rows of the tables but the first, which is zero-shot CLIP, are of the
    same weights.
    """

    options_class = HostOptions
    host_is = "trained on all tasks at once"
    reach = "stream"

    @property
    def takes_steps(self) -> bool:
        """Whether this is the first task."""
        return self.tasks_seen == 0

    def after_task(self) -> None:
        """Let the host finish the first task alone."""
        if self.tasks_seen == 1:
            super().after_task()

    def workload(self) -> Workload:
        """Return the cost of the host, in the first task alone."""
        return replace(super().workload(), tasks=1)
