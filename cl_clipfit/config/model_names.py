"""Names of models, as far as they can be told without PyTorch."""

from collections.abc import Iterable
from pathlib import Path

from cl_clipfit.errors import is_file, nearest, program


def explain_unknown(architecture: str, pretrained: str, known: Iterable[str]) -> str:
    """Return what is wrong with the name of a model whose architecture is not a known one."""
    if not pretrained and is_file(architecture):
        return f"--model {architecture} is a file: give its architecture too, ARCH:{architecture}"
    if not pretrained and is_file(architecture, or_folder=True):
        return f"--model {architecture} is a folder: --model local-dir:{architecture}"
    return (
        f"unknown model architecture '{architecture[:100]}'. {nearest(architecture, known)}"
        f" All are listed by: {program()} list models"
    )


def with_absolute_paths(model: str) -> str:
    """Return a model's name with absolute paths, so that it means the same in another folder.

    A name without a folder or an ending is an architecture or a tag, as for open_clip.
    """
    parts = model.split(":")
    paths = (("/" in part or "." in part) and is_file(part, or_folder=True) for part in parts)
    resolved = zip(parts, paths, strict=True)
    return ":".join(str(Path(part).resolve()) if is_path else part for part, is_path in resolved)
