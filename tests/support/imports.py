"""The picture of the imports, counted; `python -m tests.support.imports [FOLDER]` prints it.

A room is a folder of `cl_clipfit`, or a loose module at its root. An arrow leads from a room to
one that it imports, anywhere in its files. Floors are counted along the longest chain of arrows,
a circle of rooms being one floor.
"""

import ast
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

PACKAGE = "cl_clipfit"
ENTRANCES = ("__init__", "__main__")  # they name what the package offers
Arrows = Mapping[str, set[str]]


def imported(file: Path) -> set[str]:
    """Return all modules a file imports, anywhere in it, by their whole names."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def room_files(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield the room of every file of the package, and the file."""
    package = root / PACKAGE
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        if parts[0] not in ENTRANCES:
            yield parts[0], file


def arrows(root: Path = Path()) -> dict[str, set[str]]:
    """Return the rooms that each room imports, itself left out."""
    drawn: dict[str, set[str]] = {room: set() for room, _ in room_files(root)}
    for room, file in room_files(root):
        for module in imported(file):
            parts = module.split(".")
            if parts[0] == PACKAGE and len(parts) > 1 and parts[1] in drawn:
                drawn[room].add(parts[1])
    return {room: rooms - {room} for room, rooms in drawn.items()}


def circles(drawn: Arrows) -> list[set[str]]:
    """Return the sets of two or more rooms that all reach one another."""
    components: dict[int, set[str]] = {}
    for room, label in _components(drawn).items():
        components.setdefault(label, set()).add(room)
    return [rooms for rooms in components.values() if len(rooms) > 1]


def floors(drawn: Arrows) -> dict[str, int]:
    """Return each room's floor: 1 where it imports none, else one above the highest it imports."""
    labels = _components(drawn)
    below: dict[int, set[int]] = {label: set() for label in labels.values()}
    for room, rooms in drawn.items():
        below[labels[room]] |= {labels[other] for other in rooms} - {labels[room]}
    heights: dict[int, int] = {}

    def height(label: int) -> int:
        if label not in heights:
            heights[label] = 1 + max((height(other) for other in below[label]), default=0)
        return heights[label]

    return {room: height(label) for room, label in labels.items()}


def _components(drawn: Arrows) -> dict[str, int]:
    rooms = sorted(drawn)
    edges = [(rooms.index(room), rooms.index(other)) for room in rooms for other in drawn[room]]
    matrix = csr_matrix(
        ([1] * len(edges), tuple(zip(*edges, strict=True)) if edges else ([], [])),
        shape=(len(rooms), len(rooms)),
    )
    _, labels = connected_components(matrix, directed=True, connection="strong")
    return dict(zip(rooms, labels.tolist(), strict=True))


def count(root: Path = Path()) -> dict[str, int]:
    """Count rooms, loose modules, floors, arrows between rooms, and circles."""
    drawn = arrows(root)
    loose = [file for _, file in room_files(root) if file.parent == root / PACKAGE]
    return {
        "rooms": len(drawn),
        "loose modules": len(loose),
        "floors": max(floors(drawn).values()),
        "arrows": sum(len(rooms) for rooms in drawn.values()),
        "circles": len(circles(drawn)),
    }


if __name__ == "__main__":
    print(json.dumps(count(Path(*sys.argv[1:2])), indent=1))
