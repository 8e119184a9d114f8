"""Train on one data set, test on others, which `--probe` names.

The protocol of CoOp's successors (Zhou et al. 2022, arXiv 2203.05557): 16 shots of all classes of
ImageNet, then ten other data sets zero-shot. Nine of them are included; UCF101 is not available
for download as single frames: make a folder of them and name a scenario file that reads it.
"""

from pydantic import Field

from cl_clipfit import DataRequest, Options, Source

NAME = "cross-dataset"
PROTOCOL = "transfer"
CLASSES = "of the data set"
TASKS = 1
IMAGES = "of the data sets"
DOWNLOAD = "of the data sets"
LICENCE = "of the data sets"
CLASS_ORDER = "natural"
PROBES = (
    "caltech101", "oxford-pets", "split-cars196", "flowers102", "food101", "fgvc-aircraft",
    "sun397", "dtd", "eurosat",
)  # fmt: skip


class CrossDatasetOptions(Options):
    """The data set to train on."""

    dataset: str = Field("split-imagenet1k", description="any scenario: run.py list scenarios")

    def parts(self) -> tuple[str, ...]:
        """Return the data set."""
        return (self.dataset,)


def load(options: CrossDatasetOptions, request: DataRequest) -> Source:
    """Read the data set from its folder in `--data-dir`, or from `--data-dir` itself."""
    folder = request.folder_of(options.dataset)
    return request.other(options.dataset, folder or request.data_dir)
