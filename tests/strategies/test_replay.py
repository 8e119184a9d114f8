"""Replay: against Avalanche's plug-in run by hand, with the same random numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.training.plugins import ReplayPlugin
from avalanche.training.storage_policy import ReservoirSamplingBuffer
from torch import Tensor

from benchmarks.faults.job import artefacts
from cl_clipfit import Source, build_scenario
from cl_clipfit.cli.app import main
from cl_clipfit.training.snapshot import kept_bytes
from tests.support.over_host import REGISTRY, SGD, Build, made, trained
from tests.support.tiny import TINY


class SameDraws(ReservoirSamplingBuffer):
    """Avalanche's reservoir, with the random numbers of the memory of a method."""

    def __init__(self, size: int, draws: torch.Generator) -> None:
        super().__init__(size)
        self.draws = torch.Generator()
        self.draws.set_state(draws.get_state())

    def post_adapt(self, agent: Any, exp: Any) -> None:
        with torch.random.fork_rng():
            torch.set_rng_state(self.draws.get_state())
            super().post_adapt(agent, exp)
            self.draws.set_state(torch.get_rng_state())


def test_replay_is_the_plugin_of_avalanche_run_by_hand(tiny: Build, source: Source) -> None:
    """With a memory that fits in one batch of it, so that both take all of it in every step."""
    stream = build_scenario("s", source, tasks=3)
    replay = made("replay", tiny, stream, keep="reservoir", memory=5)
    policy = SameDraws(5, replay.memory.draws)
    replay.memory.draw = lambda count: dict(replay.memory.rows)  # so that only keys are drawn
    plugin = ReplayPlugin(mem_size=5, batch_size_mem=5, storage_policy=policy)
    full = REGISTRY.strategy_class("full")(
        model=tiny(), class_names=stream.class_names, recipe=SGD, plugins=[plugin]
    )
    by_hand = trained(full, stream)
    ours = trained(replay, stream)
    held = torch.stack([policy.buffer[at][0] for at in range(5)])
    assert torch.equal(
        held.flatten(1).double().sum(1).sort().values,
        replay.memory.rows["images"].flatten(1).double().sum(1).sort().values,
    )
    start = tiny().parameters()
    moved = max(float((a - b).abs().max()) for a, b in zip(by_hand, start, strict=True))
    apart = max(float((a - b).abs().max()) for a, b in zip(by_hand, ours, strict=True))
    assert moved > 1e-3
    assert apart < 1e-4 * moved


def test_replay_keeps_few_images_of_each_class_and_counts_their_bytes(
    tiny: Build, source: Source
) -> None:
    stream = build_scenario("s", source, tasks=3)
    replay = made("replay", tiny, stream, memory=8)
    trained(replay, stream)
    images, labels = replay.memory.rows["images"], replay.memory.rows["labels"]
    assert labels.bincount().tolist() == [2, 2, 1, 1, 1, 1]
    assert images.dtype == torch.uint8
    for image, label in zip(images, labels, strict=True):
        same = (source.train.images == image).flatten(1).all(1)
        assert stream.class_names[label] in {
            source.class_names[y] for y in source.train.labels[same]
        }
    assert kept_bytes(replay) == images.numel() + 8 * 8 + 4 * 8  # labels of 8 bytes, keys of 4


def test_an_online_stream_fills_the_memory_piece_by_piece_and_resumes(
    tmp_path: Path, stop_at: Callable[[int], None]
) -> None:
    job = [*TINY, "--online", "4", "--quiet", "--strategy", "replay:memory=5,batch_size=4"]

    def run(output: str) -> int:
        return main([*job, "--output", str(tmp_path / output)])

    assert run("whole") == 0
    stop_at(8)
    assert run("broken") == 143
    stop_at(0)
    assert run("broken") == 0
    assert artefacts(tmp_path / "broken") == artefacts(tmp_path / "whole")


@pytest.mark.parametrize("host", ["clipfit", "coop"])
def test_the_loss_of_replay_ranks_all_classes_seen_over_any_host(
    host: str, tiny: Build, source: Source
) -> None:
    stream = build_scenario("s", source, tasks=2)
    replay = made("replay", tiny, stream, host, memory=8, replayed=3)
    batches: list[tuple[int, list[int]]] = []
    real = replay.compute_loss

    def watched(logits: Tensor, labels: Tensor) -> Tensor:
        ranked = logits[0].isfinite().nonzero().flatten().tolist()
        batches.append((len(labels), ranked))
        return real(logits, labels)

    replay.compute_loss = watched
    trained(replay, stream)
    assert batches == [(6, [0, 1, 2])] * 8 + [(9, [*range(6)])] * 8
    assert replay.workload().passes == 2 * 1.5
