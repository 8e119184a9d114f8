"""Train on ImageNet, test on its shifted twins: V2, Sketch, A, R and ObjectNet.

Robust fine-tuning (Wortsman et al. 2022, WiSE-FT, arXiv 2109.01903). The twins are probes, ranked
among the ImageNet classes that each of them has.
"""

from pydantic import Field

from cl_clipfit import DataRequest, Options, Source

NAME = "imagenet-shifts"
PROTOCOL = "transfer"
CLASSES = 1000
TASKS = 1
IMAGES = "1,281,167 + 50,000"
DOWNLOAD = "partly by hand"
LICENCE = "ImageNet's: research"
CLASS_ORDER = "natural"
PROBES = ("imagenet-v2", "imagenet-sketch", "imagenet-a", "imagenet-r", "objectnet")


class ShiftsOptions(Options):
    """The data set to train on."""

    dataset: str = Field("split-imagenet1k", description="split-imagenet1k, or another scenario")

    def parts(self) -> tuple[str, ...]:
        """Return the data set."""
        return (self.dataset,)


def load(options: ShiftsOptions, request: DataRequest) -> Source:
    """Read ImageNet from its folder in `--data-dir`, or from `--data-dir` itself."""
    folder = request.folder_of(options.dataset)
    return request.other(options.dataset, folder or request.data_dir)
