"""DER++: its three terms in plain PyTorch, what its memory holds, and a run that is stopped."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.faults.job import artefacts
from cl_clipfit import CLIPStrategy, Source, build_scenario
from cl_clipfit.cli.app import main
from tests.support.over_host import SGD, Build, made, trained
from tests.support.tiny import TINY


def test_der_adds_the_distance_to_old_logits_and_the_loss_on_old_labels(
    tiny: Build, source: Source
) -> None:
    """Worked out again from what the memory gave: two draws, the second one for its labels."""
    stream = build_scenario("s", source, tasks=2)
    der = made("der-pp", tiny, stream, memory=9, replayed=4, alpha=0.3, beta=0.7)
    losses: list[tuple[float, float]] = []
    real, step = der.compute_loss, der.step_batch

    def watched(logits: Tensor, labels: Tensor) -> Tensor:
        loss = real(logits, labels)
        if der.replayed and der.tasks_seen:
            first, second = der.replayed
            known = first["logits"].isfinite()
            distance = (logits[6:10][known] - first["logits"][known]).square().mean()
            expected = F.cross_entropy(logits[:6], labels[:6]) + 0.3 * distance
            expected = expected + 0.7 * F.cross_entropy(logits[10:], second["labels"])
            assert torch.equal(labels[6:], torch.cat([first["labels"], second["labels"]]))
            losses.append((float(loss.detach()), float(expected.detach())))
        return loss

    def drawn(batch: list[Tensor]) -> list[Tensor]:
        images, labels = step(batch)
        old = torch.cat([rows["images"] for rows in der.replayed] or [images[:0]])
        assert torch.equal(images, torch.cat([batch[0], old]))
        return [images, labels]

    der.compute_loss, der.step_batch = watched, drawn
    weights = trained(der, stream)
    assert len(losses) == 8
    assert [a for a, _ in losses] == pytest.approx([b for _, b in losses], rel=1e-5)
    assert all(weight.isfinite().all() for weight in weights)
    kept = der.memory.rows
    ranks = kept["logits"].isfinite().sum(1)
    assert len(kept["labels"]) == 9
    assert set(ranks.tolist()) == {3, 6}  # kept in task 1, and in task 2
    assert (kept["labels"][ranks == 3] < 3).all()


def test_der_keeps_the_logits_of_the_step_in_which_an_image_came(
    tiny: Build, source: Source
) -> None:
    stream = build_scenario("s", source, tasks=2)
    der = made("der-pp", tiny, stream, memory=100)
    der.recipe = SGD.model_copy(update={"lr": 1e-12})
    der.train_epochs = 1
    der.train(stream.benchmark.train_stream[0], eval_streams=[])
    rows = der.memory.rows
    with torch.no_grad():
        logits = tiny_logits(der, rows["images"])
    assert len(rows["images"]) == 24
    assert torch.allclose(rows["logits"][:, :3], logits[:, :3], atol=1e-4)
    assert rows["logits"][:, 3:].isneginf().all()


def tiny_logits(strategy: CLIPStrategy, images: Tensor) -> Tensor:
    """Return the scores of images by the tuned weights."""
    return strategy.model(images)


def test_a_run_stopped_in_the_midst_of_a_task_resumes_with_its_memory(
    tmp_path: Path, stop_at: Callable[[int], None]
) -> None:
    job = [*TINY, "--epochs", "2", "--batch-size", "5", "--quiet", "--strategy", "der-pp:memory=7"]

    def run(output: Path) -> int:
        return main([*job, "--output", str(output)])

    assert run(tmp_path / "whole") == 0
    stops = 0
    stop_at(6)
    while (code := run(tmp_path / "broken")) == 143:
        stops += 1
        stop_at(6)
    assert (code, stops) == (0, 3)
    assert artefacts(tmp_path / "broken") == artefacts(tmp_path / "whole")
    (file,) = (tmp_path / "broken").glob("*/result.json")
    result = json.loads(file.read_text())
    assert result["warnings"] == []
    assert result["kept"]["exemplars"] == 7
