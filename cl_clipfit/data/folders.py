"""Images in folders, one folder a class."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.functional import pil_to_tensor

from cl_clipfit.data.source import ImageSet
from cl_clipfit.errors import UserError, nearest


def plain_name(folder: str) -> str:
    """Return the class name that a folder stands for: "maple_tree" is "maple tree"."""
    return " ".join(folder.replace("_", " ").split())


def read_known_classes(folder: Path, names: Sequence[str]) -> ImageSet:
    """Read `folder`/CLASS/* for classes known beforehand; all images of one size.

    Args:
        folder: holds one folder a class.
        names: class names in label order.

    Returns:
        images uint8 (N, 3, H, W), in the order of class and file names.

    Raises:
        UserError: an unknown class, an unreadable image, or images of several sizes.
    """
    labels_of = {name: label for label, name in enumerate(names)}
    images: list[torch.Tensor] = []
    labels: list[int] = []
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        name = plain_name(path.name)
        if name not in labels_of:
            raise UserError(f"{path}: no class is called '{name}'. {nearest(name, names)}")
        for file in sorted(f for f in path.iterdir() if f.suffix.lower() in IMG_EXTENSIONS):
            images.append(read_image(file))
            labels.append(labels_of[name])
            if images[-1].shape != images[0].shape:
                sizes = [f"{i.shape[2]}x{i.shape[1]}" for i in (images[0], images[-1])]
                raise UserError(f"{file} has {sizes[1]} pixels where others have {sizes[0]}")
    if not images:
        raise UserError(f"{folder} holds no images: expected {folder.name}/CLASS/*.png")
    return ImageSet(torch.stack(images), torch.tensor(labels))


def read_image(file: Path) -> torch.Tensor:
    """Decode an image file to uint8 (3, H, W).

    Raises:
        UserError: it cannot be read.
    """
    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError("more than 8 bits a channel")
            return pil_to_tensor(image.convert("RGB"))
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"{file} cannot be read as an image: {error}") from error
