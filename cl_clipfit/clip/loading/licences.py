"""The licence of pretrained weights, as their publishers state it; SPDX identifiers."""

from cl_clipfit.clip.loading.names import MINI, parse_model

UNKNOWN = "other"
# By the beginning of an open_clip tag; the first that fits counts.
_BY_TAG = (
    ("openai", "MIT"),
    ("laion", "MIT"),
    ("datacomp", "MIT"),
    ("commonpool", "MIT"),
    ("webli", "Apache-2.0"),
    ("metaclip", "CC-BY-NC-4.0"),
)


def licence_of(model: str) -> str:
    """Return the licence of a model's pretrained weights, or "other" if it is not on record.

    Example:
        >>> licence_of("ViT-B-16-quickgelu:openai"), licence_of("local-dir:mine")
        ('MIT', 'other')
    """
    architecture, pretrained = parse_model(model)
    if architecture == MINI and not pretrained:
        return "MIT"
    tag = pretrained.partition(":")[0]
    return next((name for start, name in _BY_TAG if tag.startswith(start)), UNKNOWN)
