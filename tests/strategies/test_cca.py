"""CCA-CL over a stream against the analysis of all pairs at once, in NumPy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cl_clipfit import CLIPClassifier, Recipe, Source, build_scenario
from cl_clipfit.heads.canonical import canonical_head
from cl_clipfit.registry import Registry
from cl_clipfit.strategies.cca import CCA, CCAOptions

Build = Callable[..., CLIPClassifier]


def whiten(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray(vectors / np.sqrt(values) @ vectors.T)


def cosines(train: Tensor, text: Tensor, labels: Tensor, test: Tensor, penalty: float) -> Any:
    """Return cosines of test images (N, D) and texts (K, D) in the canonical subspace."""
    x, t, new = (a.double().numpy() for a in (train, text, test))
    pairs = t[labels.numpy()]
    both = np.cov(x.T, pairs.T)
    d = x.shape[1]
    first, second = (whiten(c + penalty * np.eye(d)) for c in (both[:d, :d], both[d:, d:]))
    u, s, vt = np.linalg.svd(first @ both[:d, d:] @ second)
    kept = int(np.argmax(np.cumsum(s**2) / np.sum(s**2) >= 0.99)) + 1
    left = (new - x.mean(0)) @ first @ u[:, :kept] * s[:kept]
    right = (t - pairs.mean(0)) @ second @ vt[:kept].T * s[:kept]
    left, right = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (left, right))
    return left @ right.T


def test_a_stream_gives_the_analysis_of_all_pairs_at_once(tiny: Build, source: Source) -> None:
    torch.manual_seed(3)
    options = CCAOptions(penalty=0.01, energy=0.99, sigma=2.0)
    strategy = CCA(model=tiny(), class_names=source.class_names, options=options)
    for experience in build_scenario("s", source, tasks=3).benchmark.train_stream:
        strategy.train(experience, eval_streams=[])
    model = tiny()
    model.add_classes(source.class_names)
    with torch.no_grad():
        train, test = (model.image_features(p.images) for p in (source.train, source.test))
        rows = [strategy.embed(rows) for rows in (train, model.text_features(), test)]
    assert rows[0].shape == (len(train), 40)
    matrix = strategy.projection(16)
    draw = torch.Generator().manual_seed(strategy.seeds.init + 1)
    phases = 2 * np.pi * torch.rand(40, generator=draw)
    torch.testing.assert_close(rows[0], ((train @ matrix / 2 + phases).cos()) / 20**0.5)
    expected = cosines(rows[0], rows[1], source.train.labels, rows[2], 0.01)
    scores = strategy.score_all(source.test.images)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)


def test_it_follows_a_method_that_tunes_the_towers_on_the_first_task(
    tiny: Build, source: Source
) -> None:
    full = Registry().strategy_class("full")
    assert not CCA.refuses(full)
    cls = CCA.over(full)
    recipe = Recipe(epochs=1, batch_size=8, lr=0.01)
    strategy = cls(model=tiny(), class_names=source.class_names, recipe=recipe)
    first, second, _ = build_scenario("s", source, tasks=3).benchmark.train_stream
    strategy.train(first, eval_streams=[])
    tuned = strategy.current_values()
    strategy.train(second, eval_streams=[])
    assert all(torch.equal(tuned[n], v) for n, v in strategy.current_values().items())
    with torch.no_grad():
        text = strategy.embed(strategy.model.text_features())
        zero_shot = strategy.embed(strategy.model.zero_shot_text_features)
    assert not torch.allclose(text, zero_shot)
    heads = [canonical_head(strategy.statistics, t, 1e-4, 0.999) for t in (text, zero_shot)]
    tuned_text, other = (head(zero_shot)[:, :4] for head in heads)
    torch.testing.assert_close(strategy.head(zero_shot)[:, :4], tuned_text)
    assert not torch.allclose(tuned_text, other, atol=0.01)
