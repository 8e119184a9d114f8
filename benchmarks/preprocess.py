"""Time the preparation of images against the image tower that they are prepared for.

    python -m benchmarks.preprocess --model ViT-B-16 --batch-size 32 --repeats 5 --json

Untrained weights and drawn pictures: neither changes what a step costs. All ways take turns within
one run, so that a machine that slows down slows all of them.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from benchmarks import timing
from cl_clipfit.clip import CLIPClassifier, create_classifier
from cl_clipfit.data.images.decode import THREADS
from cl_clipfit.data.images.lazy import ImageFiles, LazyImages
from cl_clipfit.training.selection import select_layer_norms

PHOTO = (375, 500)  # height and width of a common photograph in data sets


def draw_picture(draws: np.random.Generator, height: int, width: int) -> Image.Image:
    """Return a smooth picture with some noise, which a JPEG file holds about as a photograph."""
    coarse = draws.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = draws.integers(-12, 13, (height, width, 3))
    return Image.fromarray((np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8))


def write_photos(folder: Path, count: int) -> ImageFiles:
    """Write JPEG files of about 500 x 375 pixels."""
    draws, paths = np.random.default_rng(0), []
    for number in range(count):
        height, width = (side + int(draws.integers(-20, 21)) for side in PHOTO)
        paths.append(folder / f"{number}.jpg")
        draw_picture(draws, height, width).save(paths[-1], quality=90)
    return ImageFiles(tuple(paths))


def make_ways(
    model: CLIPClassifier, folder: Path, batch_size: int, device: torch.device
) -> dict[str, Callable[[], Any]]:
    """Return what is timed: each function prepares or encodes `batch_size` images."""
    preprocess, draws = model.preprocess, np.random.default_rng(0)
    pictures = {
        side: [draw_picture(draws, side, side) for _ in range(batch_size)] for side in (32, 256)
    }
    tensors = {
        side: torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
        .contiguous()
        .to(device)
        for side, images in pictures.items()
    }
    config = PreprocessCfg(
        size=preprocess.size, mean=preprocess.mean, std=preprocess.std,
        interpolation=preprocess.interpolation, resize_mode=preprocess.resize_mode,
        fill_color=preprocess.fill_color,
    )  # fmt: skip
    transform = image_transform_v2(config, is_train=False)
    photos = LazyImages([write_photos(folder, batch_size)], preprocess)
    ready = preprocess(tensors[256])
    norms = list(model.train_only(select_layer_norms(model.clip)).values())

    def forward() -> None:
        with torch.no_grad():
            model.image_features(ready)

    def train() -> None:
        torch.autograd.grad(model.image_features(ready).square().sum(), norms, allow_unused=True)

    def decode() -> None:
        _, bad = photos.decode()
        assert not bad

    return {
        "ours_32": lambda: preprocess(tensors[32]),
        "ours_256": lambda: preprocess(tensors[256]),
        "open_clip_32": lambda: [transform(image) for image in pictures[32]],
        "open_clip_256": lambda: [transform(image) for image in pictures[256]],
        "jpeg_files": decode,
        "tower_forward": forward,
        "tower_training": train,
    }


def measure(name: str, batch_size: int, repeats: int, device: torch.device) -> dict[str, Any]:
    """Time all ways in turns; see `main` for the arguments."""
    torch.manual_seed(0)
    model = create_classifier(timing.model_name(name), device)
    with tempfile.TemporaryDirectory() as folder:
        ways = make_ways(model, Path(folder), batch_size, device)
        medians = timing.medians(timing.take_turns(ways, repeats, device))
    towers = ("tower_forward", "tower_training")
    return {
        "model": name,
        "size": list(model.preprocess.size),
        "batch_size": batch_size,
        "repeats": repeats,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "decoding_threads": THREADS,
        "images_per_second": {way: batch_size / value for way, value in medians.items()},
        # seconds of the preparation over seconds of the image tower
        "share_of_tower": {
            tower: {way: medians[way] / medians[tower] for way in ways if way not in towers}
            for tower in towers
        },
        "open_clip_over_ours": {
            side: medians[f"open_clip_{side}"] / medians[f"ours_{side}"] for side in ("32", "256")
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    timing.add_options(parser, model="ViT-B-16", batch_size=32, repeats=5, device="cpu")
    given = timing.parse(parser, arguments)
    with timing.one_line(parser):
        found = measure(given.model, given.batch_size, given.repeats, torch.device(given.device))
    timing.show(found, given.json)


if __name__ == "__main__":
    main()
