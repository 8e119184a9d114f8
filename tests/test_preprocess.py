"""Batched preprocessing against open_clip's own transform, which works on PIL images."""

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from sklearn.datasets import load_sample_images

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
