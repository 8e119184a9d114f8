"""100 classes of coloured and textured shapes, 10 tasks of 10; drawn in a shifted domain.

The offline counterpart of split CIFAR-100: 10 shapes x 10 attributes, with a colour cast, a dark
tone curve, clutter, blur and noise that the mini CLIP did not see in pre-training.
"""

import torch
from pydantic import Field

from cl_clipfit import DataRequest, ImageSet, Options, Source, shapes

NAME = "split-shapes100"
CLASSES = 100
TASKS = 10
IMAGES = "4,000 + 2,000"
DOWNLOAD = "none"
LICENCE = "MIT"
MODEL = "mini"
CLASS_ORDER = "pycil-1993"
RECIPE = {"epochs": 5, "batch_size": 32, "lr": 3e-3}
DATA_SEED = 100


class ShapesOptions(Options):
    """Settings of the drawing."""

    severity: float = Field(0.5, ge=0, le=1, description="distance from the pre-training domain")
    train_images: int = Field(40, ge=1, le=1000, description="training images per class")
    test_images: int = Field(20, ge=1, le=1000, description="test images per class")


def load(options: ShapesOptions, request: DataRequest) -> Source:
    """Draw the images; the same seed and options give the same images."""

    def draw_set(per_class: int, seed: int) -> ImageSet:
        generator = torch.Generator().manual_seed(seed)
        labels = list(range(len(shapes.CLASS_NAMES))) * per_class
        # Draw all classes in rounds, so that a class's first images do not depend on the count.
        rounds = [
            shapes.sample_classes(range(len(shapes.CLASS_NAMES)), generator, options.severity)
            for _ in range(per_class)
        ]
        return ImageSet(torch.cat(rounds), torch.tensor(labels))

    return Source(
        class_names=shapes.CLASS_NAMES,
        templates=("a photo of a {}.",),
        train=draw_set(options.train_images, DATA_SEED),
        test=draw_set(options.test_images, DATA_SEED + 1),
    )
