"""Eleven data sets one after another, each with its own prompt: multi-domain task-incremental.

Zheng et al. 2023 (ZSCL, arXiv 2303.06628), orders I and II. Transfer, Average and Last are
task-aware, as in ZSCL; the accuracy over all classes is reported as well.
"""

from pydantic import Field

from cl_clipfit import DataRequest, Options, Parts, Source, UserError, one_after_the_other

NAME = "mtil"
PROTOCOL = "mtil"
CLASSES = 1201
TASKS = 11
IMAGES = "319,000 + 97,000"
DOWNLOAD = "46 GB, cars by hand"
LICENCE = "of each data set"
MODEL = "ViT-B-16-quickgelu:openai"
ORDERS = {
    1: (
        "fgvc-aircraft", "caltech101", "split-cifar100", "dtd", "eurosat", "flowers102", "food101",
        "mnist", "oxford-pets", "split-cars196", "sun397",
    ),
    2: (
        "split-cars196", "food101", "mnist", "oxford-pets", "flowers102", "sun397",
        "fgvc-aircraft", "caltech101", "dtd", "eurosat", "split-cifar100",
    ),
}  # fmt: skip


class MtilOptions(Options):
    """Which data sets, in which order."""

    order: int = Field(1, ge=1, le=2, description="order I (by name) or II")
    datasets: Parts = Field((), description="scenarios in place of the eleven, in order: A+B+C")

    def parts(self) -> tuple[str, ...]:
        """Return the data sets, in order."""
        return self.datasets or ORDERS[self.order]


def load(options: MtilOptions, request: DataRequest) -> Source:
    """Read every data set from its folder in `--data-dir`, or download it."""
    names = options.parts()
    if len(set(names)) != len(names):
        raise UserError(f"--set {NAME}.datasets: a data set is named twice")
    given = request.data_dir if len(names) == 1 else None
    sources = {name: request.other(name, request.folder_of(name) or given) for name in names}
    return one_after_the_other(sources)
