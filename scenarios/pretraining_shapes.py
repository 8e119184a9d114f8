"""Coloured and textured shapes as in the mini CLIP's pre-training; a probe, or 10 tasks of 10.

The classes of split-shapes100, drawn anew without any shift of domain.
"""

import torch

from cl_clipfit import DataRequest, ImageSet, Options, Source, shapes

NAME = "pretraining-shapes"
CLASSES = 100
TASKS = 10
IMAGES = "1,000 + 1,000"
DOWNLOAD = "none"
LICENCE = "MIT"
MODEL = "mini"
CLASS_ORDER = "natural"
DATA_SEED = 300
IMAGES_PER_CLASS = 10


def load(options: Options, request: DataRequest) -> Source:
    """Draw the shapes; always the same ones."""

    def draw_set(seed: int) -> ImageSet:
        generator = torch.Generator().manual_seed(seed)
        labels = list(range(len(shapes.CLASS_NAMES))) * IMAGES_PER_CLASS
        return ImageSet(shapes.sample_classes(labels, generator), torch.tensor(labels))

    test = draw_set(DATA_SEED + 1)
    train = test.none() if request.test_only else draw_set(DATA_SEED)
    return Source(shapes.CLASS_NAMES, ("a photo of a {}.",), train, test)
