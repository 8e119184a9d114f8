"""Digits and letters from the TrueType fonts that matplotlib ships.

Pre-training sees `TRAIN_FONTS`; the `glyph-letters` probe is drawn in `HELD_OUT_FONTS`.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from cl_clipfit.clip.mini import draw
from cl_clipfit.runtime.lean_imports import any_backend

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTER_NAMES = tuple("abcdefghijklmnopqrstuvwxyz")

TRAIN_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono",
    "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Bold",
    "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic",
    "STIXGeneralBolIta", "cmb10", "cmr10", "cmss10", "cmti10",
)  # fmt: skip
HELD_OUT_FONTS = ("DejaVuSans-BoldOblique", "DejaVuSerif-BoldItalic", "cmtt10")


@cache
def _font_masks(font: str) -> dict[str, Tensor]:
    """Draw every digit and letter of one font, scaled to fill a centred 44-pixel box."""
    from PIL import Image, ImageDraw, ImageFont

    with any_backend():
        import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    if not path.is_file():
        raise FileNotFoundError(f"matplotlib {matplotlib.__version__} ships no font {path.name}")
    face = ImageFont.truetype(str(path), 160)
    masks = {}
    for character in "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ":
        left, top, right, bottom = (round(v) for v in face.getbbox(character))
        image = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(image).text((-left, -top), character, font=face, fill=255)
        ratio = 44 / max(image.size)
        width, height = (max(1, round(side * ratio)) for side in image.size)
        canvas = Image.new("L", (draw.MASK_SIZE, draw.MASK_SIZE))
        corner = ((draw.MASK_SIZE - width) // 2, (draw.MASK_SIZE - height) // 2)
        canvas.paste(image.resize((width, height), Image.Resampling.LANCZOS), corner)
        masks[character] = torch.from_numpy(np.asarray(canvas, dtype=np.float32) / 255)[None]
    return masks


def glyph_masks(characters: Sequence[str], fonts: Sequence[str]) -> Tensor:
    """Return (B, 1, 64, 64) masks of `characters`, each in its font."""
    return torch.stack([_font_masks(f)[c] for c, f in zip(characters, fonts, strict=True)])


def sample_glyphs(
    labels: Sequence[str], generator: Generator, fonts: Sequence[str] = TRAIN_FONTS
) -> Tensor:
    """Draw one image of each named glyph in the pre-training domain.

    Args:
        labels: digit names ("three") or letters ("b"; drawn as capital or small letter).
        generator: source of randomness.
        fonts: fonts to choose from.

    Returns:
        uint8 (B, 3, 32, 32).
    """
    count = len(labels)
    font_index = torch.randint(len(fonts), (count,), generator=generator).tolist()
    capital = draw.chance(0.5, count, generator).tolist()
    characters = [
        str(DIGIT_NAMES.index(name)) if name in DIGIT_NAMES else name.upper() if big else name
        for name, big in zip(labels, capital, strict=True)
    ]
    masks = glyph_masks(characters, [fonts[i] for i in font_index])
    masks = draw.warp_masks(
        masks, generator, rotation=0.3, scale=(0.9, 1.45), shear=0.35, stretch=0.3, elastic=0.07
    )
    alpha = draw.shrink(draw.vary_stroke(masks, 0.2, 0.6, generator))
    return draw.to_uint8(_print_glyphs(alpha, generator))


def _print_glyphs(alpha: Tensor, generator: Generator) -> Tensor:
    """Give glyphs an ink, a paper, a coarser scan for some, and noise."""
    count = len(alpha)
    # A scan at 8 to 15 pixels, smoothly enlarged: what small digit images look like.
    coarse = alpha.clone()
    resolution = torch.randint(8, 16, (count,), generator=generator)
    scanned = draw.chance(0.4, count, generator)
    for pixels in range(8, 16):
        chosen = scanned & (resolution == pixels)
        if chosen.any():
            small = F.interpolate(alpha[chosen], size=pixels, mode="area")
            coarse[chosen] = F.interpolate(small, size=draw.SIZE, mode="bicubic")
    grey = draw.chance(0.5, count, generator).view(-1, 1)
    ink = draw.uniform(0.65, 1, (count, 3), generator)
    paper = draw.uniform(0, 0.35, (count, 3), generator)
    ink = torch.where(grey, ink[:, :1].expand(-1, 3), ink)
    paper = torch.where(grey, paper[:, :1].expand(-1, 3), paper)
    dark_ink = draw.chance(0.4, count, generator).view(-1, 1)
    ink, paper = torch.where(dark_ink, paper, ink), torch.where(dark_ink, ink, paper)
    return draw.add_noise(draw.paint(coarse, ink, paper), 0.08, generator)
