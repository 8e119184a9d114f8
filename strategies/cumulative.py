"""Cumulative: any method on the images of all tasks so far, an upper bound for every task."""

from pydantic import Field

from cl_clipfit import HostedStrategy, Options

NAME = "cumulative"
GROUP = "bounds"
PAPER = "an upper bound of the field; as Avalanche's Cumulative"
NEEDS = "all images of earlier tasks"
EXEMPLARS = "all"


class CumulativeOptions(Options):
    """Settings of cumulative training; other settings of its label go to the host."""

    host: str = Field("full", description="the method that is trained")


class Cumulative(HostedStrategy):
    """Train the host in every task on the images and classes of this task and all before.

    It continues from the weights of the task before, as Avalanche's does. The epochs are those of
    the host for every task, so that task t takes t times as many steps.
    """

    options_class = CumulativeOptions
    host_is = "trained on all images so far"
    reach = "seen"
