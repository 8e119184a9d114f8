"""Data sets one after another in one label space: cross-domain task-agnostic incremental.

Xu et al. 2024 (RAIL, arXiv 2406.18868): MTIL's data sets without CIFAR-100, whose classes overlap
theirs. Every test image is scored over the classes of all data sets, those not yet learned
included, and nothing says which data set it is from. The paper trains on 16 images per class
(`--shots 16`) and uses one template everywhere (`--template "a photo of a {}."`).
"""

from pydantic import Field

from cl_clipfit import DataRequest, Options, Parts, Source, UserError, one_after_the_other

NAME = "x-tail"
PROTOCOL = "x-tail"
CLASSES = 1101
TASKS = 10
IMAGES = "269,000 + 87,000"
DOWNLOAD = "46 GB, cars by hand"
LICENCE = "of each data set"
MODEL = "ViT-B-16-quickgelu:openai"
DATASETS = (
    "fgvc-aircraft", "caltech101", "dtd", "eurosat", "flowers102", "food101", "mnist",
    "oxford-pets", "split-cars196", "sun397",
)  # fmt: skip


class XTailOptions(Options):
    """Which data sets."""

    datasets: Parts = Field(DATASETS, description="scenarios, in order: A+B+C")

    def parts(self) -> tuple[str, ...]:
        """Return the data sets, in order."""
        return self.datasets


def load(options: XTailOptions, request: DataRequest) -> Source:
    """Read every data set from its folder in `--data-dir`, or download it."""
    names = options.datasets
    if len(set(names)) < len(names):
        raise UserError(f"--set {NAME}.datasets: a data set is named twice")
    sources = {name: request.other(name, request.folder_of(name)) for name in names}
    return one_after_the_other(sources)
