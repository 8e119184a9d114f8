"""Train on the first half of the classes of any data set, test on both halves.

The protocol of CoCoOp (Zhou et al. 2022, arXiv 2203.05557), which CLIPFit and MERGETUNE report:
16 shots, each half ranked among its own classes, and the harmonic mean of both accuracies.
"""

from pydantic import Field

from cl_clipfit import DataRequest, Options, Source, base_and_novel

NAME = "base-to-novel"
PROTOCOL = "base-to-novel"
CLASSES = "of the data set"
TASKS = 2
IMAGES = "of the data set"
DOWNLOAD = "of the data set"
LICENCE = "of the data set"
CLASS_ORDER = "natural"


class BaseToNovelOptions(Options):
    """The data set to use."""

    dataset: str = Field("split-digits", description="any scenario: run.py list scenarios")

    def parts(self) -> tuple[str, ...]:
        """Return the data set."""
        return (self.dataset,)


def load(options: BaseToNovelOptions, request: DataRequest) -> Source:
    """Read the data set; the first half of the classes, rounded up, are the base classes."""
    return base_and_novel(request.other(options.dataset, request.data_dir))
