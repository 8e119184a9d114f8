"""Six classes told apart by colour, on generated 16x16 images."""

import torch

from cl_clipfit import DataRequest, ImageSet, Options, Source

TASKS = 2
MODEL = "mini"
PROBES = ()
RECIPE = {"epochs": 1, "batch_size": 16, "lr": 1e-3}


def build_source(classes: int = 6, per_class: int = 8, seed: int = 0) -> Source:
    """Return images whose colour tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(per_class)
    colours = torch.randint(0, 256, (classes, 3, 1, 1), generator=generator)
    noise = torch.randint(-20, 20, (len(labels), 3, 16, 16), generator=generator)
    images = (colours[labels] + noise).clamp(0, 255).to(torch.uint8)
    data = ImageSet(images, labels)
    names = tuple(f"colour {label}" for label in range(classes))
    return Source(names, ("a photo of a {}.",), data, data)


def load(options: Options, request: DataRequest) -> Source:
    """Generate the images."""
    return build_source()
