"""Batched preprocessing against open_clip's own transform, which works on PIL images."""

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import pil_to_tensor, resized_crop, to_pil_image

from cl_clipfit.clip.augment import random_box, random_flip, random_resized_crop
from cl_clipfit.clip.preprocess import Preprocess


@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    "size", [(427, 640), (640, 427), (300, 300), (8, 8), (33, 47), (224, 224), (225, 301)]
)
def test_pixels_agree_with_open_clips_transform(
    resize_mode: str, interpolation: str, size: tuple[int, int]
) -> None:
    config = PreprocessCfg(
        size=224, resize_mode=resize_mode, interpolation=interpolation, fill_color=0
    )
    transform = image_transform_v2(config, is_train=False)
    ours = Preprocess((224, 224), config.mean, config.std, interpolation, resize_mode)
    images = [
        Image.fromarray(picture).resize(size[::-1]) for picture in load_sample_images().images
    ]
    expected = torch.stack([transform(image) for image in images])
    pixels = np.stack([np.asarray(image) for image in images])
    actual = ours(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())
    std = torch.tensor(config.std).view(3, 1, 1)
    levels = ((actual - expected) * std * 255).abs()
    assert actual.shape == (2, 3, 224, 224)
    assert (levels <= 1.01).float().mean() >= 0.999
    assert levels.max() <= 6


PLAIN = Preprocess(size=(24, 20), mean=(0.0,) * 3, std=(1.0,) * 3)


def pictures(count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator).to(torch.uint8)


@pytest.mark.parametrize("size", [(40, 60), (16, 16)])
def test_random_resized_crops_are_those_of_torchvision(size: tuple[int, int]) -> None:
    images = pictures(8, *size)
    crops = random_resized_crop(images, PLAIN, 0.2, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    for image, crop in zip(images, crops, strict=True):
        box = random_box(*size, 0.2, generator)
        picture = resized_crop(to_pil_image(image), *box, [24, 20], InterpolationMode.BICUBIC)
        levels = (crop.int() - pil_to_tensor(picture).int()).abs()
        assert levels.max() <= 1
        assert (levels == 0).float().mean() > 0.98


def test_random_boxes_follow_the_distribution_of_torchvision() -> None:
    """Compared by the mean and spread of area and ratio over 4,000 draws each."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(1)
    blank = torch.zeros(3, 100, 120)
    ours, theirs = [], []
    for _ in range(4000):
        ours.append(random_box(100, 120, 0.08, generator))
        theirs.append(RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3]))
    for measure in (lambda b: b[2] * b[3] / 12000, lambda b: b[3] / b[2], lambda b: b[0] / 100):
        one, two = (torch.tensor([measure(b) for b in boxes]) for boxes in (ours, theirs))
        assert abs(one.mean() - two.mean()) < 5 * (one.std() / 4000**0.5)
        assert one.std() / two.std() == pytest.approx(1, abs=0.06)
    assert all(t >= 0 and t + h <= 100 and le + w <= 120 for t, le, h, w in ours)
    assert random_box(10, 1000, 1.0, generator) == (0, 493, 10, 13)  # no box fits


def test_flips_mirror_about_half_of_the_images() -> None:
    images = pictures(400, 4, 4)
    flipped = random_flip(images, torch.Generator().manual_seed(0))
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    untouched = (flipped == images).flatten(1).all(1)
    assert (mirrored | untouched).all()
    assert 160 < mirrored.sum() < 240
