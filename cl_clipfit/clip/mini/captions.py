"""Every caption of the mini CLIP's pre-training world, and which images each one fits.

An image is described by *facts* ("letter b"; or "red", "striped", "circle"). A caption states some
of them, and fits every image for which all stated facts are true.
"""

from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from cl_clipfit.clip.mini import draw, glyphs, shapes

DIGIT_TEMPLATES = (
    "a photo of the digit {}.", "the digit {}", "the number {}", "a photo of the number {}.",
    "a handwritten digit {}.",
)  # fmt: skip
LETTER_TEMPLATES = ("a photo of the letter {}.", "the letter {}", "a picture of the letter {}.")
SHAPE_TEMPLATES = ("a photo of a {}.", "a {}", "a picture of a {}.", "a drawing of a {}.")


@dataclass
class CaptionTable:
    """All captions, with `facts` (N, F), true where caption n states fact f."""

    captions: list[str] = field(default_factory=list)
    facts: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.bool))
    fact_index: dict[str, int] = field(default_factory=dict)
    rows: dict[tuple[str, ...], list[int]] = field(default_factory=dict)

    def encode_facts(self, facts: list[tuple[str, ...]]) -> Tensor:
        """Return (B, F) of bool: the facts of each image."""
        out = torch.zeros(len(facts), len(self.fact_index), dtype=torch.bool)
        for row, names in enumerate(facts):
            out[row, [self.fact_index[name] for name in names]] = True
        return out

    def truth(self, captions: Tensor, image_facts: Tensor) -> Tensor:
        """Return (B, U) of bool: does caption u fit image b?"""
        stated = self.facts[captions].float()
        return image_facts.float() @ stated.T == stated.sum(1)


def build_captions() -> CaptionTable:
    """List every caption and the facts it states."""
    stated: list[tuple[tuple[str, ...], str]] = []
    for name in glyphs.DIGIT_NAMES:
        stated += [((f"digit {name}",), t.format(name)) for t in DIGIT_TEMPLATES]
    for name in glyphs.LETTER_NAMES:
        stated += [((f"letter {name}",), t.format(name)) for t in LETTER_TEMPLATES]
    for shape in (*shapes.SHAPES, ""):
        for colour in (*draw.COLOURS, ""):
            for texture in (*draw.TEXTURES, ""):
                facts = tuple(fact for fact in (colour, texture, shape) if fact)
                if facts:
                    words = " ".join([*facts, *([] if shape else ["shape"])])
                    stated += [(facts, t.format(words)) for t in SHAPE_TEMPLATES]
    table = CaptionTable()
    for facts, _ in stated:
        for fact in facts:
            table.fact_index.setdefault(fact, len(table.fact_index))
    for facts, caption in stated:
        table.rows.setdefault(facts, []).append(len(table.captions))
        table.captions.append(caption)
    table.facts = table.encode_facts([facts for facts, _ in stated])
    return table


def sample_pairs(
    table: CaptionTable, count: int, generator: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a batch, half glyphs, half shapes.

    Returns:
        images uint8 (count, 3, 32, 32), caption indices (count,), facts of bool (count, F).
    """
    glyph_count = count // 2
    digits = draw.chance(0.4, glyph_count, generator).tolist()
    pick = torch.rand(glyph_count, generator=generator).tolist()
    kinds = [
        ("digit", glyphs.DIGIT_NAMES) if d else ("letter", glyphs.LETTER_NAMES) for d in digits
    ]
    names = [group[int(p * len(group))] for p, (_, group) in zip(pick, kinds, strict=True)]
    facts: list[tuple[str, ...]] = [
        (f"{kind} {name}",) for (kind, _), name in zip(kinds, names, strict=True)
    ]
    stated = list(facts)
    looks = []
    for _ in range(count - glyph_count):
        a, b, c, *mention = torch.rand(6, generator=generator).tolist()
        look = (
            list(draw.COLOURS)[int(a * len(draw.COLOURS))],
            draw.TEXTURES[int(b * len(draw.TEXTURES))],
            shapes.SHAPES[int(c * len(shapes.SHAPES))],
        )
        looks.append(look)
        # Captions omit facts, as people do; "solid" is rarely mentioned.
        keep = (0.6, 0.2 if look[1] == "solid" else 0.6, 0.9)
        said = tuple(f for f, m, k in zip(look, mention, keep, strict=True) if m < k)
        facts.append(look)
        stated.append(said or (look[2],))
    images = torch.cat(
        [
            glyphs.sample_glyphs(names, generator),
            shapes.sample_shapes(
                [s for _, _, s in looks],
                [c for c, _, _ in looks],
                [t for _, t, _ in looks],
                generator,
            ),
        ]
    )
    template = torch.rand(count, generator=generator).tolist()
    captions = [
        table.rows[said][int(t * len(table.rows[said]))]
        for said, t in zip(stated, template, strict=True)
    ]
    return images, torch.tensor(captions), table.encode_facts(facts)
