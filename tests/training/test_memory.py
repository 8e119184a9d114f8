"""What stays in a bounded memory, against sorting all that was ever given, in plain lists."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cl_clipfit.training.memory import Memory, Rows


def fill(memory: Memory, labels: list[int], first: int) -> None:
    """Give samples numbered from `first`, with their number as an image."""
    numbers = torch.arange(first, first + len(labels)).float().view(-1, 1)
    memory.add(torch.tensor(labels), lambda kept: {"images": numbers[kept]})


def held(memory: Memory) -> dict[int, int]:
    """Return the label of each number in a memory."""
    numbers = memory.rows["images"].flatten().int().tolist()
    assert len(set(numbers)) == len(numbers) == len(memory) == len(memory.keys)
    return dict(zip(numbers, memory.rows["labels"].tolist(), strict=True))


PIECES = [[0, 1] * 6, [0, 0, 2], [3] * 4, [2, 3, 1, 0] * 5, [4], [5, 6, 7], [8], [8], [0, 8]]


@pytest.mark.parametrize("by_class", [False, True])
def test_the_largest_keys_stay_in_any_number_of_pieces(by_class: bool) -> None:
    memory = Memory(7, by_class, seed=3)
    draws, given, first = torch.Generator().manual_seed(3), list[tuple[float, int, int]](), 0
    for labels in PIECES:
        keys = torch.rand(len(labels), generator=draws).tolist()
        given += zip(keys, range(first, first + len(labels)), labels, strict=True)
        fill(memory, labels, first)
        first += len(labels)
        kept = sorted(given, reverse=True)[:7]
        if by_class:
            seen = sorted({label for _, _, label in given})
            kept = []
            for place, label in enumerate(seen):
                room = 7 // len(seen) + (place < 7 % len(seen))
                kept += [one for one in sorted(given, reverse=True) if one[2] == label][:room]
            given = kept  # what was dropped cannot return: classes have less room as they arrive
        assert held(memory) == {number: label for _, number, label in kept}


def test_every_sample_is_as_likely_to_stay() -> None:
    counts = torch.zeros(20)
    for seed in range(2000):
        memory = Memory(5, False, seed)
        for first in range(0, 20, 4):
            fill(memory, [0] * 4, first)
        counts[list(held(memory))] += 1
    assert counts.sum() == 10_000
    assert (counts / 2000 - 0.25).abs().max() < 0.04  # 4 standard errors


def test_a_draw_repeats_nothing_and_a_state_restores_it() -> None:
    memory = Memory(6, True, seed=0)
    fill(memory, [0, 1] * 8, 0)
    state = memory.draws.get_state()
    drawn = memory.draw(4)
    numbers = drawn["images"].flatten().tolist()
    assert len(set(numbers)) == 4
    assert [held(memory)[int(n)] for n in numbers] == drawn["labels"].tolist()
    assert sorted(memory.draw(99)["images"].flatten().tolist()) == sorted(held(memory))
    other = Memory(6, True, seed=1)
    other.load_state(memory.state())
    other.draws.set_state(state)
    assert torch.equal(other.draw(4)["images"], drawn["images"])


def test_only_what_stays_is_read() -> None:
    read: list[Tensor] = []

    def rows(kept: Tensor) -> Rows:
        read.append(kept)
        return {"images": kept.float()}

    memory: Any = Memory(3, False, seed=0)
    memory.add(torch.zeros(50, dtype=torch.long), rows)
    assert len(read[0]) == 3
