"""Moments of LayerNorms against open_clip's forward with hooks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cl_clipfit import CLIPClassifier, Recipe, Source
from cl_clipfit.evaluation.moments import norm_moments
from cl_clipfit.strategies.clipfit import ClipFit, ClipFitOptions
from tests.support import encoders
from tests.support.norms import normalised_inputs

Build = Callable[..., CLIPClassifier]


def learner(model: CLIPClassifier, source: Source, **options: Any) -> ClipFit:
    strategy = ClipFit(
        model=model, class_names=source.class_names, recipe=Recipe(),
        options=ClipFitOptions(**options), eval_mb_size=4,
    )  # fmt: skip
    strategy.select()
    return strategy


@pytest.mark.parametrize("pooling", ["tok", "avg"])
@pytest.mark.parametrize("fast", [True, False])
def test_moments_are_those_of_a_plain_forward_with_hooks(
    pooling: str, fast: bool, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = encoders.build({"pool_type": pooling})
    strategy, images = learner(model, source), source.train.images[:10]
    assert model._towers.knows_image(model.clip)
    before = model.image_features(images)
    if not fast:
        monkeypatch.setattr(type(model._towers), "knows_image", lambda *_: False)
    found, expected = norm_moments(strategy, images, 48), normalised_inputs(model, images)
    assert found.images == 48
    assert set(found.means) == set(found.squares) == set(expected)
    assert len(expected) == 6  # before, after, and two in each of two blocks
    unread = ("clip.visual.transformer.resblocks.1.ln_2", "clip.visual.ln_post")
    for name, rows in expected.items():
        if not fast and pooling == "tok" and name in unread:
            continue  # open_clip's own pass computes tokens that it does not read
        np.testing.assert_allclose(found.means[name], rows.mean(0), rtol=0, atol=1e-5)
        np.testing.assert_allclose(found.squares[name], (rows**2).mean(0), rtol=1e-5, atol=1e-5)
    assert not any(module._forward_hooks for module in model.modules())
    monkeypatch.undo()
    assert torch.equal(model.image_features(images), before)


def test_only_norms_that_train_with_weight_and_bias_are_known(
    tiny: Build, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = source.train.images[:4]
    some = norm_moments(learner(tiny(), source, image_layers="1"), images, 4)
    block = "clip.visual.transformer.resblocks.1"
    assert list(some.means) == [f"{block}.ln_1", f"{block}.ln_2"]
    strategy = learner(tiny(), source, layer_norms="none")
    monkeypatch.setattr(CLIPClassifier, "image_features", None)  # nothing is encoded
    assert norm_moments(strategy, images, 4).means == {}


def test_a_batch_that_runs_out_of_memory_counts_once(
    tiny: Build, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = source.train.images[:10]
    expected = norm_moments(learner(tiny(), source), images, 10)
    encode = CLIPClassifier.image_features

    def image_features(self: CLIPClassifier, batch: Tensor) -> Tensor:
        features = encode(self, batch)  # all hooks have been called
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return features

    monkeypatch.setattr(CLIPClassifier, "image_features", image_features)
    with pytest.warns(UserWarning, match="2 images at a time"):
        found = norm_moments(learner(tiny(), source), images, 10)
    for name, means in expected.means.items():
        torch.testing.assert_close(found.means[name], means, rtol=0, atol=1e-6)
        torch.testing.assert_close(found.squares[name], expected.squares[name])
