"""Folders of small images, a folder per class."""

from pathlib import Path

import torch
from PIL import Image


def write_photos(folder: Path, *names: str, parts: tuple[str, ...] = ("train", "test")) -> Path:
    """Write three images of noise for each class into each part; return the folder."""
    draws = torch.Generator().manual_seed(sum(map(ord, "".join(names))))
    for name in names:
        for part in parts:
            place = folder / part / name
            place.mkdir(parents=True)
            for number in range(3):
                image = torch.randint(0, 256, (16, 16, 3), generator=draws, dtype=torch.uint8)
                Image.fromarray(image.numpy()).save(place / f"{number}.png")
    return folder
