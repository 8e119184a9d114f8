"""The evaluation transform of open_clip for batches of uint8 images on any device."""

from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from cl_clipfit.runtime.lean_imports import lean_imports

with lean_imports():  # before all else that imports torchvision or open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from torchvision.transforms import Compose
    from torchvision.transforms.functional import pil_to_tensor

_FAR = 4.0  # times the largest value that normalising gives; augmentations may exceed it a little


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop and normalise; the settings are those of `open_clip.PreprocessCfg`.

    Attributes:
        size: (height, width) of the result.
        mean: per channel, for values in [0, 1].
        std: per channel, for values in [0, 1].
        interpolation: "bicubic" or "bilinear".
        resize_mode: "shortest" (then centre crop), "longest" (then pad) or "squash".
        fill_color: padding for "longest", 0 to 255.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0

    @classmethod
    def default(cls) -> "Preprocess":
        """Return the settings of OpenAI's CLIP at 224 x 224 pixels."""
        config = PreprocessCfg()
        return cls((224, 224), tuple(config.mean), tuple(config.std))

    @classmethod
    def of(cls, clip: nn.Module) -> "Preprocess":
        """Read the settings that open_clip attaches to `clip.visual`."""
        config = dict(clip.visual.preprocess_cfg)  # type: ignore[arg-type, union-attr]
        size = config["size"]
        return cls(
            size=(size, size) if isinstance(size, int) else (size[0], size[1]),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation=config.get("interpolation", "bicubic"),
            resize_mode=config.get("resize_mode", "shortest"),
            fill_color=config.get("fill_color", 0),
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Turn uint8 (B, 3, H, W) into float32 (B, 3, *size), ready for the image tower."""
        images = self.fit(images).float() / 255
        return (images - _channels(self.mean, images.device)) / _channels(self.std, images.device)

    def doubt(self, images: Tensor) -> str:
        """Return why float images (B, C, H, W) cannot be preprocessed ones; "" if they may be."""
        ends = [((end - m) / s) for m, s in zip(self.mean, self.std, strict=True) for end in (0, 1)]
        low, high = (float(end) for end in images.aminmax())
        expected = f"preprocessed ones lie within {min(ends):.1f} and {max(ends):.1f}"
        remedy = "normalise them, or pass uint8 images"
        if max(-low, high) > _FAR * max(-min(ends), max(ends)):
            return f"float images reach from {low:.3g} to {high:.3g}, {expected}: {remedy}"
        if 0 <= low < high <= 1 and max(ends) > 1 and min(ends) < 0:
            return f"float images lie between 0 and 1, {expected}: {remedy}"
        return ""

    def fit_image(self, image: Image.Image) -> Tensor:
        """Resize and crop an RGB image with open_clip's own transform: uint8 (3, *size)."""
        return pil_to_tensor(self._transform(image))

    @cached_property
    def _transform(self) -> Any:
        settings = {f.name: getattr(self, f.name) for f in fields(self)}
        whole = image_transform_v2(PreprocessCfg(**settings), is_train=False)
        return Compose(whole.transforms[:-2])  # all but ToTensor and Normalize

    def fit(self, images: Tensor) -> Tensor:
        """Resize and crop uint8 (B, 3, H, W) to uint8 or integer-valued float (B, 3, *size)."""
        height, width = images.shape[-2:]
        target_height, target_width = self.size
        if (height, width) == self.size:
            return images
        if self.resize_mode == "squash":
            return self.resample(images, target_height, target_width)
        shortest = self.resize_mode == "shortest"  # cover the crop; otherwise fit inside it
        pick = max if shortest else min
        ratio = pick(target_height / height, target_width / width)
        # open_clip rounds, but leaves the common case to torchvision, which truncates.
        whole = int if shortest and target_height == target_width else round
        new_height = target_height if ratio == target_height / height else whole(height * ratio)
        new_width = target_width if ratio == target_width / width else whole(width * ratio)
        return self._crop_or_pad(self.resample(images, new_height, new_width))

    def resample(self, images: Tensor, height: int, width: int) -> Tensor:
        """Resize uint8 (B, 3, H, W), with antialiasing; values stay integers."""
        # On uint8 this rounds between the two passes, as PIL does in open_clip's transform.
        if images.device.type != "cpu":
            images = images.float()
        images = F.interpolate(
            images, size=(height, width), mode=self.interpolation, antialias=True
        )
        return images if images.dtype == torch.uint8 else images.round().clamp(0, 255)

    def _crop_or_pad(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        top, left = (
            round((size - target) / 2) if size > target else -((target - size) // 2)
            for size, target in ((height, self.size[0]), (width, self.size[1]))
        )
        # F.pad crops if a margin is negative
        right, bottom = self.size[1] - width + left, self.size[0] - height + top
        return F.pad(images, [-left, right, -top, bottom], value=self.fill_color)


@lru_cache(maxsize=16)
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return one value per channel (C, 1, 1), cached on the device: a copy would synchronise."""
    return torch.tensor(values, device=device).view(-1, 1, 1)
