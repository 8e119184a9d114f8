"""Shared pieces."""

from pathlib import Path
from typing import Any

from cl_clipfit.data.fetch import unpacking


def unpack(archive: Path, target: Path, **options: Any) -> None:
    """Unpack into a folder that appears when all of it is there, as `obtain` does."""
    with unpacking.new_folder(target) as stage:
        unpacking.unpack_into(archive, stage, **options)
