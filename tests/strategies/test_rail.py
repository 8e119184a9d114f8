"""RAIL against ridge regression on all images at once, in NumPy, and its gate."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cl_clipfit import CLIPClassifier, Source, build_scenario
from cl_clipfit.methods.closed_form import random_projection  # type: ignore[attr-defined]
from cl_clipfit.strategies.rail import RAIL, RAILOptions

Build = Callable[..., CLIPClassifier]


def learn(build: Build, source: Source, tasks: int, **options: Any) -> Any:
    """Return RAIL after the first tasks of three, in natural order."""
    strategy = RAIL(model=build(), class_names=source.class_names, options=RAILOptions(**options))
    stream = build_scenario("s", source, tasks=3, order="natural").benchmark.train_stream
    for experience in stream[:tasks]:
        strategy.train(experience, eval_streams=[])
    return strategy


def zero_shot(build: Build, source: Source) -> tuple[Tensor, Tensor, Tensor]:
    """Return features of the training and the test images, and zero-shot scores of the latter."""
    model = build()
    model.add_classes(source.class_names)
    with torch.no_grad():
        features = [model.image_features(part.images) for part in (source.train, source.test)]
        return features[0], features[1], model.logits(features[1], model.text_features())


def by_numpy(train: Tensor, test: Tensor, labels: Tensor, form: str) -> Any:
    """Return ridge regression of all training images at once, of scores for the test images."""
    x, new, y = train.double().numpy(), test.double().numpy(), np.eye(6)[labels.numpy()]
    if form == "primal":
        matrix = random_projection(16, 40, 0).double().numpy()
        x, new = (np.maximum(rows @ matrix, 0) / 4 for rows in (x, new))
        return new @ np.linalg.solve(x.T @ x + 0.3 * np.eye(40), x.T @ y)
    far = [((rows[:, None] - x) ** 2).sum(-1) for rows in (x, new)]
    return np.exp(-0.1 * far[1]) @ np.linalg.solve(np.exp(-0.1 * far[0]) + 1e-3 * np.eye(len(x)), y)


@pytest.mark.parametrize("form", ["primal", "dual"])
def test_a_stream_gives_ridge_regression_on_all_images_beside_zero_shot(
    form: str, tiny: Build, source: Source
) -> None:
    torch.manual_seed(0)
    strategy = learn(tiny, source, 3, form=form)
    assert strategy.seeds.init == 0
    train, test, text = zero_shot(tiny, source)
    ridge = torch.from_numpy(by_numpy(train, test, source.train.labels, form))
    expected = 0.1 * text.double().softmax(1) + 0.9 * ridge
    scores, scale = strategy.score_all(source.test.images).double(), strategy.model.logit_scale
    torch.testing.assert_close(scores.amax(1), text.amax(1).double())
    found = (scores - scores.amax(1, keepdim=True)) / scale.detach()
    torch.testing.assert_close(found, expected - expected.amax(1, keepdim=True), rtol=0, atol=1e-4)


def test_names_not_seen_keep_their_zero_shot_scores_and_decide_as_before(
    tiny: Build, source: Source
) -> None:
    strategy = learn(tiny, source, 1)
    _, features, text = zero_shot(tiny, source)
    images, seen = source.test.images, [0, 1]
    names = strategy.probe_features(["a bird", "colour 7"], ("{}",))
    with torch.no_grad():
        scores = strategy.joint_scores(images, names)
        text = torch.cat([text, strategy.model.logits(features, names)], 1)
    torch.testing.assert_close(scores[:, 2:], text[:, 2:])
    torch.testing.assert_close(scores[:, seen].amax(1), text[:, seen].amax(1))
    inside = text.argmax(1) < 2
    assert 0 < inside.sum() < len(inside)
    assert torch.equal(scores.argmax(1)[~inside], text.argmax(1)[~inside])
    assert (scores.argmax(1)[inside] < 2).all()
    # The regression, not zero-shot CLIP, says which of the classes seen it is.
    assert not torch.equal(scores[:, seen].argmax(1), text[:, seen].argmax(1))
    labels = source.test.labels
    right = [(s[labels < 2][:, seen].argmax(1) == labels[labels < 2]).sum() for s in (scores, text)]
    assert right[0] > right[1]


def test_without_the_regression_it_is_zero_shot_clip(tiny: Build, source: Source) -> None:
    strategy = learn(tiny, source, 2, fusion_weight=0)
    _, _, text = zero_shot(tiny, source)
    scores = strategy.score_all(source.test.images)
    assert torch.equal(scores.argmax(1), text.argmax(1))
