"""Cumulative: any method on the images of all tasks so far, an upper bound for every task."""

from cl_clipfit import HostedStrategy, HostOptions

NAME = "cumulative"
GROUP = "bounds"
PAPER = "an upper bound of the field; as Avalanche's Cumulative"
NEEDS = "all images of earlier tasks"
EXEMPLARS = "all"


class Cumulative(HostedStrategy):
    """Train the host in every task on the images and classes of this task and all before.

    It continues from the weights of the task before, as Avalanche's does. The epochs are those of
    the host for every task, so that task t takes t times as many steps.
    """

    options_class = HostOptions
    host_is = "trained on all images so far"
    reach = "seen"
