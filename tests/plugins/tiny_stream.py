"""Six classes told apart by colour, on generated 16x16 images."""

from cl_clipfit import DataRequest, Options, Source
from tests.conftest import build_source

TASKS = 2
MODEL = "mini"
PROBES = ()
RECIPE = {"epochs": 1, "batch_size": 16, "lr": 1e-3}


def load(options: Options, request: DataRequest) -> Source:
    """Generate the images."""
    return build_source()
