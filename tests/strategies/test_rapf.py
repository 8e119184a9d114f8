"""RAPF against plain PyTorch: drawn features, hinge, steps and fusion over three tasks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.faults.job import artefacts
from cl_clipfit import CLIPClassifier, Recipe, Source, build_scenario
from cl_clipfit.cli.app import main
from cl_clipfit.strategies.rapf import RAPF, RAPFOptions
from tests.support.tiny import TINY

Build = Callable[..., CLIPClassifier]
STEPS = 4


def make(build: Build, source: Source, **options: Any) -> Any:
    recipe = Recipe(epochs=STEPS, batch_size=48, lr=0.01, schedule="constant")
    return RAPF(
        model=build(), class_names=source.class_names, recipe=recipe,
        options=RAPFOptions(**options),
    )  # fmt: skip


def fused(old: np.ndarray, new: np.ndarray, bias: float) -> np.ndarray:
    """Return the fusion of the released code."""
    u, s, vt = np.linalg.svd(old)
    before, after = np.diag(s) @ vt, u.T @ new
    change = np.abs(after - before)
    share = np.minimum(change / change.max() + bias, 1)
    return np.asarray(u @ (share * after + (1 - share) * before))


def drawn(features: dict[int, Tensor], label: int, noise: Tensor) -> Tensor:
    """Return features of a class from noise (N, d), by the Gaussian of its features."""
    rows = features[label].double()
    covariance = torch.from_numpy(np.cov(rows.numpy().T)) + 1e-6 * torch.eye(16)
    return (rows.mean(0) + noise.double() @ torch.linalg.cholesky(covariance).T).float()


@pytest.mark.parametrize("threshold", [0.0, 0.02])
def test_three_tasks_are_those_of_plain_pytorch(
    threshold: float, tiny: Build, source: Source
) -> None:
    model = tiny()
    model.add_classes(source.class_names)
    text, scale = model.zero_shot_text_features, model.logit_scale.detach()
    distances = torch.cdist(text, text)
    threshold = threshold and float(distances[:2, 2:4].quantile(0.5))
    strategy = make(tiny, source, threshold=threshold, margin=0.3, samples=3, start="random")
    draws = torch.Generator().manual_seed(strategy.seeds.data)
    features: dict[int, Tensor] = {}
    layer = nn.Linear(16, 16, bias=False)
    with torch.no_grad():  # near the identity, the singular basis would depend on rounding
        layer.weight.copy_(strategy.matrix)
    neighbours = 0

    def cosines(rows: Tensor) -> Tensor:
        return F.normalize(layer(rows), dim=-1) @ text.T

    for task, experience in enumerate(build_scenario("s", source, tasks=3).benchmark.train_stream):
        with torch.no_grad():
            images = tiny().image_features(torch.stack([d[0] for d in experience.dataset]))
        labels = torch.tensor([d[1] for d in experience.dataset])
        seen, old, new = 2 * task + 2, [*range(2 * task)], (2 * task, 2 * task + 1)
        before = layer.weight.detach().clone()
        optimizer = torch.optim.AdamW(layer.parameters(), 0.01, weight_decay=0)
        for _ in range(STEPS):
            rows, targets, hinge = [images], [labels], torch.zeros(())
            if old:
                chosen = torch.randperm(len(old), generator=draws)[:2]
                noise = torch.randn(2, 3, 16, generator=draws)
                for label, of_class in zip(chosen.tolist(), noise, strict=True):
                    rows.append(drawn(features, label, of_class))
                    targets.append(torch.full((3,), label))
                pairs = [(i, j) for i in old for j in new if distances[i, j] < threshold]
                neighbours += len(pairs)
                if pairs:
                    noise = torch.randn(len(pairs), 6, 16, generator=draws)
                    terms = []
                    for (i, j), of_pair in zip(pairs, noise, strict=True):
                        similar = cosines(drawn(features, i, of_pair))
                        terms.append((similar[:, j] - similar[:, i] + 0.3).clamp(min=0))
                    hinge = torch.cat(terms).mean()
            logits = scale * cosines(torch.cat(rows))[:, :seen]
            optimizer.zero_grad()
            (F.cross_entropy(logits, torch.cat(targets)) + hinge).backward()
            optimizer.step()
        if old:
            matrix = fused(before.double().numpy(), layer.weight.detach().double().numpy(), 0.6)
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(matrix))
        features |= {int(label): images[labels == label] for label in labels.unique()}
        strategy.train(experience, eval_streams=[])
        torch.testing.assert_close(strategy.matrix, layer.weight, rtol=0, atol=1e-4)
    assert bool(neighbours) == bool(threshold)


def test_the_adapter_of_the_released_code_starts_at_random(tiny: Build, source: Source) -> None:
    start = make(tiny, source, start="random").matrix.detach()
    assert 0.2 < start.abs().max() <= 0.25  # 1 / sqrt(16), as a linear layer
    assert torch.equal(make(tiny, source).matrix, torch.eye(16))


def test_parameters_of_vit_b_16(tiny: Build) -> None:
    model = tiny()
    model.add_classes(["a", "b"])
    model.zero_shot_text_features = torch.zeros(2, 512)  # as wide as those of ViT-B/16
    assert sum(p.numel() for p in RAPF(model=model).trainable()) == 262_144


def test_a_run_stopped_while_it_draws_features_ends_as_an_unbroken_one(
    tmp_path: Path, stop_at: Any
) -> None:
    label = "rapf:threshold=3,batch_size=8,epochs=2"
    commands = [
        [*TINY, "--strategy", label, "--tasks", "3", "--output", str(tmp_path / name)]
        for name in ("unbroken", "stopped")
    ]
    stop_at(0)
    assert main(commands[0]) == 0
    for step, code in ((7, 143), (0, 0)):  # in the second task
        stop_at(step)
        assert main(commands[1]) == code
    assert artefacts(tmp_path / "stopped") == artefacts(tmp_path / "unbroken")
