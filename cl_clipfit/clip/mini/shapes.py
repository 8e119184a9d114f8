"""Coloured and textured shapes, in the pre-training domain and shifted away from it."""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Generator, Tensor

from cl_clipfit.clip.mini import draw

SHAPES = (
    "circle", "square", "triangle", "pentagon", "star", "cross", "heart", "ring", "crescent",
    "arrow",
)  # fmt: skip
CLASS_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
CLASS_TEXTURES = ("striped", "dotted", "checkered", "outlined")
# A class is named by one attribute. Textured classes are drawn in white and gray, which name no
# class, so that "striped circle" and "red circle" never both fit.
ATTRIBUTES = CLASS_COLOURS + CLASS_TEXTURES
NEUTRAL_COLOURS = ("white", "gray")
CLASS_NAMES = tuple(f"{attribute} {shape}" for shape in SHAPES for attribute in ATTRIBUTES)


def _polygon(angles: Sequence[float], radii: Sequence[float]) -> list[tuple[float, float]]:
    return [(r * math.sin(a), -r * math.cos(a)) for a, r in zip(angles, radii, strict=True)]


def _regular(corners: int, radius: float) -> list[tuple[float, float]]:
    return _polygon([2 * math.pi * i / corners for i in range(corners)], [radius] * corners)


@cache
def shape_mask(name: str) -> Tensor:
    """Return the (1, 64, 64) mask of a shape that fills about 70 % of the frame."""
    from PIL import Image, ImageDraw

    side = draw.MASK_SIZE * 4
    image = Image.new("L", (side, side))
    pen = ImageDraw.Draw(image)

    def at(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(side / 2 * (1 + x), side / 2 * (1 + y)) for x, y in points]

    def disc(x: float, y: float, radius: float, fill: int = 255) -> None:
        pen.ellipse(at([(x - radius, y - radius), (x + radius, y + radius)]), fill=fill)

    if name in ("circle", "ring", "crescent"):
        disc(0, 0, 0.68)
        if name == "ring":
            disc(0, 0, 0.36, fill=0)
        if name == "crescent":
            disc(0.32, 0, 0.52, fill=0)
    elif name == "star":
        spokes = [math.pi * i / 5 for i in range(10)]
        pen.polygon(at(_polygon(spokes, [0.78, 0.32] * 5)), fill=255)
    elif name == "cross":
        pen.rectangle(at([(-0.2, -0.68), (0.2, 0.68)]), fill=255)
        pen.rectangle(at([(-0.68, -0.2), (0.68, 0.2)]), fill=255)
    elif name == "heart":
        t = np.linspace(0, 2 * np.pi, 200)
        x = 0.7 * np.sin(t) ** 3
        y = -(0.62 * np.cos(t) - 0.24 * np.cos(2 * t) - 0.1 * np.cos(3 * t) - 0.05 * np.cos(4 * t))
        pen.polygon(at(list(zip(x.tolist(), y.tolist(), strict=True))), fill=255)
    elif name == "arrow":
        head = [(0, -0.75), (0.55, -0.1), (0.2, -0.1), (0.2, 0.72), (-0.2, 0.72)]
        pen.polygon(at([*head, (-0.2, -0.1), (-0.55, -0.1)]), fill=255)
    elif name == "square":
        pen.rectangle(at([(-0.58, -0.58), (0.58, 0.58)]), fill=255)
    else:
        corners = {"triangle": 3, "pentagon": 5}[name]
        pen.polygon(at(_regular(corners, 0.75)), fill=255)
    small = image.resize((draw.MASK_SIZE, draw.MASK_SIZE), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small, dtype=np.float32) / 255)[None]


def sample_shapes(
    shapes: Sequence[str],
    colours: Sequence[str],
    textures: Sequence[str],
    generator: Generator,
) -> Tensor:
    """Draw one image for each (shape, colour, texture) in the pre-training domain.

    Returns:
        uint8 (B, 3, 32, 32).
    """
    images, _ = _render(shapes, colours, textures, generator)
    return draw.to_uint8(draw.add_noise(images, 0.06, generator))


def _render(
    shapes: Sequence[str],
    colours: Sequence[str],
    textures: Sequence[str],
    generator: Generator,
    background: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return float images (B, 3, 32, 32) in [0, 1] and their alpha masks (B, 1, 32, 32)."""
    count = len(shapes)
    masks = torch.stack([shape_mask(name) for name in shapes])
    masks = draw.warp_masks(
        masks, generator, rotation=0.35, scale=(0.75, 1.15), shift=0.15, elastic=0.03
    )
    field = draw.texture_field(textures, masks, generator)
    if background is None:
        background = draw.backgrounds(count, generator)
    main = draw.jitter_colours(colours, generator)
    # The second tone of stripes, dots and checks; an outline shows the background instead.
    contrast = draw.uniform(0.25, 0.5, (count, 1), generator)
    brighter = draw.chance(0.5, count, generator).view(-1, 1) & (main.mean(1, True) < 0.6)
    second = torch.where(brighter, main + (1 - main) * (contrast + 0.4), main * (0.75 - contrast))
    hollow = torch.tensor([name == "outlined" for name in textures]).view(-1, 1, 1, 1)
    filling = second[..., None, None].expand(-1, -1, draw.MASK_SIZE, draw.MASK_SIZE)
    filling = torch.where(hollow, background, filling)
    inside = draw.paint(field, main[..., None, None], filling)
    return draw.shrink(draw.paint(masks, inside, background)), draw.shrink(masks)


def attribute_of(name: str, generator: Generator) -> tuple[str, str]:
    """Return a (colour, texture) that fits a class attribute such as "red" or "striped"."""
    if name in CLASS_COLOURS:
        return name, "solid"
    pick = int(torch.randint(len(NEUTRAL_COLOURS), (1,), generator=generator))
    return NEUTRAL_COLOURS[pick], name


def sample_classes(labels: Sequence[int], generator: Generator, severity: float = 0.0) -> Tensor:
    """Draw one image for each class of `CLASS_NAMES`.

    Args:
        labels: indices into `CLASS_NAMES`.
        generator: source of randomness.
        severity: distance from the pre-training domain; 0 is that domain itself.

    Returns:
        uint8 (B, 3, 32, 32).
    """
    names = [CLASS_NAMES[label].split(" ") for label in labels]
    looks = [attribute_of(attribute, generator) for attribute, _ in names]
    shapes = [shape for _, shape in names]
    colours, textures = [c for c, _ in looks], [t for _, t in looks]
    if severity == 0:
        return sample_shapes(shapes, colours, textures, generator)
    images, _ = _render(shapes, colours, textures, generator)
    return draw.to_uint8(shift_domain(images, generator, severity))


def shift_domain(images: Tensor, generator: Generator, severity: float) -> Tensor:
    """Move images (B, 3, 32, 32) away from the pre-training domain.

    A fixed colour cast and a darker tone curve, which tuning can compensate, and clutter, blur and
    noise, to which it can only become robust.
    """
    from torchvision.transforms.functional import gaussian_blur

    count = len(images)
    cast = torch.tensor([[0.45, 0.35, 0.20], [0.15, 0.45, 0.40], [0.40, 0.15, 0.45]])
    mixed = torch.einsum("dc,bchw->bdhw", cast, images)
    images = images + severity * (mixed - images)
    images = images.clamp(0, 1) ** (1 + severity)
    lines = torch.randn(count, 1, 7, 7, generator=generator)
    lines = torch.nn.functional.interpolate(lines, size=draw.SIZE, mode="bicubic")
    ridge = torch.exp(-((lines / 0.15) ** 2))
    tone = draw.uniform(0, 1, (count, 3), generator)
    images = draw.paint(ridge * 0.8 * severity, tone, images)
    images = gaussian_blur(images, [5, 5], [0.01 + 1.2 * severity])
    return images + torch.randn(images.shape, generator=generator) * 0.12 * severity
