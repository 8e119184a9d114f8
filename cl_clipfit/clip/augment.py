"""Training augmentation on batches of uint8 images, on any device."""

import math

import torch
from torch import Tensor

from cl_clipfit.clip.preprocess import Preprocess

RATIO = (3 / 4, 4 / 3)  # width / height, as in Szegedy et al. 2015 and torchvision
TRIES = 10


def random_box(
    height: int, width: int, smallest: float, generator: torch.Generator
) -> tuple[int, int, int, int]:
    """Draw a box (top, left, height, width) of `smallest` to 1 of the area, as torchvision does.

    Torchvision's function uses the global generator, which also shuffles the data. The area is
    uniform, the aspect ratio log-uniform; after `TRIES` boxes that do not fit, the result is the
    largest centred box with an allowed ratio.
    """
    low, high = (math.log(r) for r in RATIO)
    for _ in range(TRIES):
        u, v = torch.rand(2, generator=generator).tolist()
        area = height * width * (smallest + (1 - smallest) * u)
        ratio = math.exp(low + (high - low) * v)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(height - h + 1, (), generator=generator))
            left = int(torch.randint(width - w + 1, (), generator=generator))
            return top, left, h, w
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def random_resized_crop(
    images: Tensor, preprocess: Preprocess, smallest: float, generator: torch.Generator
) -> Tensor:
    """Cut a random box out of every image and resize it to the tower's input size.

    Args:
        images: uint8 (B, 3, H, W).
        preprocess: size and interpolation of the tower.
        smallest: the smallest fraction of the area that is kept.
        generator: source of randomness, on the CPU.

    Returns:
        uint8 (B, 3, *size).
    """
    crops = []
    for image in images:
        top, left, height, width = random_box(image.shape[1], image.shape[2], smallest, generator)
        box = image[None, :, top : top + height, left : left + width]
        crops.append(preprocess.resample(box, *preprocess.size).to(torch.uint8))
    return torch.cat(crops)


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror every image (B, 3, H, W) left to right with probability one half."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    mirrored = mirrored.to(images.device, non_blocking=True)
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
