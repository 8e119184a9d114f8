"""Draw batches of small synthetic images: masks warped, textured, coloured, and degraded.

Everything here is a function of an explicit `torch.Generator`; no global random state is touched.
Images are 32x32 because that is what the mini CLIP sees. Masks are sampled at twice that size and
averaged down, which is the only anti-aliasing they need.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

SIZE = 32
MASK_SIZE = 64

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.12),
    "orange": (0.95, 0.55, 0.10),
    "yellow": (0.92, 0.88, 0.15),
    "green": (0.15, 0.65, 0.20),
    "blue": (0.15, 0.30, 0.85),
    "purple": (0.55, 0.20, 0.70),
    "pink": (0.98, 0.60, 0.75),
    "brown": (0.45, 0.28, 0.12),
    "white": (0.95, 0.95, 0.95),
    "gray": (0.55, 0.55, 0.55),
}
TEXTURES = ("solid", "striped", "dotted", "checkered", "outlined")


def uniform(low: float, high: float, shape: Sequence[int], generator: Generator) -> Tensor:
    """Draw a float tensor of `shape`, uniform on [low, high)."""
    return torch.rand(*shape, generator=generator) * (high - low) + low


def chance(probability: float, count: int, generator: Generator) -> Tensor:
    """Draw a boolean tensor (count,), each entry true with `probability`."""
    return torch.rand(count, generator=generator) < probability


def _grid(size: int) -> Tensor:
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y], dim=-1)


def warp_masks(
    masks: Tensor,
    generator: Generator,
    *,
    rotation: float,
    scale: tuple[float, float],
    shear: float = 0.15,
    stretch: float = 0.15,
    shift: float = 0.12,
    elastic: float = 0.08,
) -> Tensor:
    """Move, turn, scale, shear and bend masks.

    Args:
        masks: (B, 1, M, M) in [0, 1].
        generator: source of randomness.
        rotation: largest turn, radians.
        scale: smallest and largest scale; 1 keeps the size of the mask.
        shear: largest shear, as a slope.
        stretch: largest relative change of the aspect ratio.
        shift: largest translation, in half image widths.
        elastic: standard deviation of the smooth displacement field, in half image widths.

    Returns:
        (B, 1, MASK_SIZE, MASK_SIZE) in [0, 1].
    """
    count = len(masks)
    angle = uniform(-rotation, rotation, (count,), generator)
    size = uniform(*scale, (count,), generator)
    aspect = torch.exp(uniform(-stretch, stretch, (count,), generator))
    slope = uniform(-shear, shear, (count,), generator)
    offset = uniform(-shift, shift, (count, 1, 1, 2), generator)
    # grid_sample asks where each output pixel comes from, so this is the inverse map.
    cos, sin = torch.cos(angle), torch.sin(angle)
    matrix = torch.stack(
        [
            torch.stack([cos / aspect, sin / aspect + slope], -1),
            torch.stack([-sin * aspect, cos * aspect], -1),
        ],
        1,
    ) / size.view(-1, 1, 1)
    bend = torch.randn(count, 2, 5, 5, generator=generator) * elastic
    bend = F.interpolate(bend, size=MASK_SIZE, mode="bicubic", align_corners=True)
    grid = _grid(MASK_SIZE).unsqueeze(0) - offset + bend.permute(0, 2, 3, 1)
    grid = torch.einsum("bhwi,bji->bhwj", grid, matrix)
    return F.grid_sample(masks, grid, mode="bilinear", align_corners=False)


def vary_stroke(masks: Tensor, low: float, high: float, generator: Generator) -> Tensor:
    """Thicken or thin masks: blur, then cut softly at a random level in [low, high)."""
    axis = torch.arange(-3, 4, dtype=torch.float32)
    kernel = torch.exp(-(axis**2) / (2 * 1.5**2))
    kernel = kernel / kernel.sum()
    blurred = F.conv2d(masks, kernel.view(1, 1, 1, -1), padding=(0, 3))
    blurred = F.conv2d(blurred, kernel.view(1, 1, -1, 1), padding=(3, 0))
    level = uniform(low, high, (len(masks), 1, 1, 1), generator)
    return torch.sigmoid((blurred - level) / 0.06)


def shrink(images: Tensor) -> Tensor:
    """Average (B, C, 2n, 2n) down to (B, C, n, n)."""
    return F.avg_pool2d(images, 2)


def texture_field(names: Sequence[str], masks: Tensor, generator: Generator) -> Tensor:
    """Return (B, 1, M, M) in [0, 1]: where the main colour of each texture shows.

    `outlined` keeps only the rim of the mask, so it needs the masks (B, 1, M, M).
    """
    count = len(names)
    angle = uniform(0, math.pi, (count, 1, 1), generator)
    period = uniform(0.28, 0.42, (count, 1, 1), generator)
    phase = uniform(0, 1, (count, 2, 1, 1), generator)
    grid = _grid(MASK_SIZE)
    x, y = grid[..., 0], grid[..., 1]
    u = (x * torch.cos(angle) + y * torch.sin(angle)) / period + phase[:, 0]
    v = (y * torch.cos(angle) - x * torch.sin(angle)) / period + phase[:, 1]
    wave_u, wave_v = torch.sin(2 * math.pi * u), torch.sin(2 * math.pi * v)
    # A 13 x 13 box average, one axis at a time.
    inner = F.avg_pool2d(masks, (1, 13), stride=1, padding=(0, 6))
    inner = F.avg_pool2d(inner, (13, 1), stride=1, padding=(6, 0))[:, 0]
    fields = {
        "solid": torch.ones_like(u),
        "striped": torch.sigmoid(wave_u * 8),
        "dotted": torch.sigmoid((0.35 - torch.hypot((u % 1) - 0.5, (v % 1) - 0.5)) * -25),
        "checkered": torch.sigmoid(wave_u * wave_v * 12),
        "outlined": torch.sigmoid((0.82 - inner) * 30),
    }
    stacked = torch.stack([fields[name] for name in TEXTURES], 1)
    choice = torch.tensor([TEXTURES.index(name) for name in names])
    return stacked[torch.arange(count), choice].unsqueeze(1)


def paint(alpha: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
    """Blend colours (B, 3) or images (B, 3, H, W) by `alpha` (B, 1, H, W)."""
    foreground = foreground[..., None, None] if foreground.dim() == 2 else foreground
    background = background[..., None, None] if background.dim() == 2 else background
    return background + alpha * (foreground - background)


def backgrounds(count: int, generator: Generator, tint: float = 0.15) -> Tensor:
    """Draw (count, 3, MASK_SIZE, MASK_SIZE): a muted colour with a smooth gradient."""
    level = uniform(0, 1, (count, 1, 1, 1), generator)
    # Mostly dark or light: mid greys hide half of the colours.
    level = torch.where(level < 0.5, level * 0.5, 0.5 + level * 0.5)
    colour = level + torch.randn(count, 3, 1, 1, generator=generator) * tint
    slope = torch.randn(count, 3, 3, 3, generator=generator) * 0.06
    slope = F.interpolate(slope, size=MASK_SIZE, mode="bilinear", align_corners=True)
    return (colour + slope).clamp(0, 1)


def jitter_colours(names: Sequence[str], generator: Generator, amount: float = 0.06) -> Tensor:
    """Look up named colours with a little noise: (B, 3)."""
    base = torch.tensor([COLOURS[name] for name in names])
    return (base + torch.randn(len(names), 3, generator=generator) * amount).clamp(0, 1)


def add_noise(images: Tensor, largest: float, generator: Generator) -> Tensor:
    """Add Gaussian noise whose standard deviation is uniform on [0, largest) for each image."""
    sigma = uniform(0, largest, (len(images), 1, 1, 1), generator)
    return images + torch.randn(images.shape, generator=generator) * sigma


def to_uint8(images: Tensor) -> Tensor:
    """Quantise images in [0, 1] to uint8; values outside are clipped."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
