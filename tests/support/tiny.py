"""Shared pieces."""

import functools

import open_clip
import torch
from open_clip.transform import PreprocessCfg

from benchmarks.faults.tiny_stream import build_source as build_source  # shared with the plug-in
from cl_clipfit.clip import CLIPClassifier
from cl_clipfit.commands import summary
from cl_clipfit.report import figures
from cl_clipfit.report.html import thumbnails

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


# Options of a quick command, and plug-ins to write to a file.
PLUGIN = ["--plugin", "examples/image_norms.py", "benchmarks/faults/tiny_stream.py"]


TINY = ["--scenario", "tiny-stream", *PLUGIN]


FROZEN = [*TINY, "--strategy", "zero-shot"]


TRAINED = [*TINY, "--strategy", "image-norms"]


MINE = "from cl_clipfit import CLIPStrategy\nclass Mine(CLIPStrategy):\n"


SAVE_FIGURE = figures.save_figure
PLOT_RUN, PLOT_CHANGES = figures.plot_run, figures.plot_changes
PLOT_COMPARISON = figures.plot_comparison
WRITE_REPORT, SAVE_THUMBNAILS = summary.write_report, thumbnails.save_thumbnails


STREAM = """
import torch
from cl_clipfit import ImageSet, Source
MODEL = "mini"
PROBES = ()
def load(options, request):
    images = torch.full((4, 3, 8, 8), {level}, dtype=torch.uint8)
    data = ImageSet(images, torch.tensor([0, 0, 1, 1]))
    return Source(("a", "b"), ("{{}}",), data, data)
"""


@functools.cache
def tokenizer() -> open_clip.SimpleTokenizer:
    """Return the tokenizer of all tiny models: to make one takes longer than a model."""
    return open_clip.SimpleTokenizer(context_length=12)


def build_tiny(seed: int = 0) -> CLIPClassifier:
    """Return a random CLIP of about 30,000 parameters besides its token table."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = open_clip.CLIP(**TINY_CLIP)
    open_clip.set_model_preprocess_cfg(clip, {**PreprocessCfg().__dict__, "size": 16})
    return CLIPClassifier(clip, tokenizer())
