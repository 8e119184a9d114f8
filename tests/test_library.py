"""The package as a library: what importing it brings along, and what it leaves as it was."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.results import result

# Filters that dependencies add belong to them, so they are imported first.
IMPORTS = """
import json, sys, warnings
import matplotlib, numpy, scipy.special, sklearn, torch, torchvision
from PIL import Image
from cl_clipfit.runtime.lean_imports import lean_imports
with lean_imports():
    import avalanche, open_clip

def state():
    return [
        [str(one) for one in warnings.filters], matplotlib.get_backend(),
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32,
        torch.are_deterministic_algorithms_enabled(), torch.get_num_threads(),
        torch.initial_seed.__module__,
    ]

before = state()
import cl_clipfit
for name in cl_clipfit.__all__:
    getattr(cl_clipfit, name)
import cl_clipfit.data.images.decode, cl_clipfit.experiment.prepare, cl_clipfit.experiment.run
import cl_clipfit.report.landscape
after = state()
"""
DRAW = """
from pathlib import Path
from cl_clipfit.report import figures
figures.plot_run(json.loads(sys.argv[1]), Path(sys.argv[2]))
after = state()
pyplot = "matplotlib.pyplot" in sys.modules
"""
LEAN = """
import json, sys
import cl_clipfit
for name in {names}:
    getattr(cl_clipfit, name)
from cl_clipfit.runtime.lean_imports import DEFERRED
late = [m for m in (*DEFERRED, "sklearn", "tensorboard", "torch._dynamo") if m in sys.modules]
"""
LATE = """
import torch
from open_clip import timm_model
from torchvision.ops import roi_align
from avalanche.benchmarks.datasets.cub200 import cub200
from avalanche.evaluation import metric_utils, metrics
from avalanche.evaluation.metrics import confusion_matrix, topk_acc
from avalanche.logging import TensorboardLogger
from avalanche.training.plugins import gem

logger = TensorboardLogger(sys.argv[1])
logger.log_single_metric("loss", 0.5, 1)
logger.writer.flush()
del logger
assert not isinstance(3, metric_utils.Axes)  # Matplotlib is not imported yet
top = metrics.TopkAccuracy(2)
top.update(torch.eye(3)[[0, 0]], torch.tensor([0, 2]), 0)
boxes = torch.tensor([[0.0, 0, 0, 4, 4]])
class Pool(timm_model.RotAttentionPool2d):
    pass

import gdown, qpsolvers, timm.layers, torchmetrics, wandb
from matplotlib.axes import Axes
from matplotlib.figure import Figure
same = [
    cub200.gdown.download is gdown.download,
    confusion_matrix.wandb.plot.confusion_matrix is wandb.plot.confusion_matrix,
    gem.qpsolvers.solve_qp is qpsolvers.solve_qp,
    timm_model.timm.create_model is timm.create_model,
    timm_model.to_2tuple(3) == (3, 3) and issubclass(Pool, timm.layers.RotAttentionPool2d),
    isinstance(Figure().add_subplot(), metric_utils.Axes),
    top.result_task_label(0) == {0: 0.5} and topk_acc.torchmetrics.Metric is torchmetrics.Metric,
    roi_align(torch.ones(1, 1, 4, 4), boxes, 2).sum().item() == 4,
]
"""


def told(code: str, what: str, *arguments: str) -> Any:
    """Run code in a process of its own and return what it has in a variable at its end."""
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", f"{code}\nprint(json.dumps({what}))", *arguments],
        capture_output=True, text=True, check=True,
        env={**os.environ, "MPLBACKEND": "svg", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_the_library_and_drawing_leave_the_process_as_it_was(tmp_path: Path) -> None:
    before, after, drawn = told(
        IMPORTS + "imported = after\n" + DRAW, "[before, imported, [after, pyplot]]",
        json.dumps(result("full")), str(tmp_path / "curves"),
    )  # fmt: skip
    assert after == before
    assert drawn == [before, False]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_importing_the_library_leaves_out_what_few_functions_need() -> None:
    assert told(LEAN.format(names="reversed(cl_clipfit.__all__)"), "late") == []


def test_what_is_imported_late_works(tmp_path: Path) -> None:
    code = LEAN.format(names="cl_clipfit.__all__") + LATE
    late, same = told(code, "[late, same]", str(tmp_path))
    assert late == []
    assert same == [True] * 8
    assert list(tmp_path.rglob("events.out.tfevents*"))
