"""ProLIP: loss, gradient and steps are those of plain PyTorch; images are encoded once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cl_clipfit import CLIPClassifier, Recipe, Source, UserError, build_scenario
from cl_clipfit.cli.app import main
from cl_clipfit.strategies.prolip import Prolip, ProlipOptions
from tests.support.published import build, chosen
from tests.support.tiny import TINY

Build = Callable[..., CLIPClassifier]


class Watched(Prolip):
    """Keeps the loss and the gradient of every step."""

    def add_gradients(self) -> None:
        super().add_gradients()
        (gradient,) = (p.grad.clone() for p in self.selection.values())
        self.seen = [*getattr(self, "seen", []), (self.loss.detach().squeeze(), gradient)]


def before_projection(model: CLIPClassifier, images: Tensor) -> Tensor:
    """Return the output of ln_post at the class token, by a hook on open_clip's own pass."""
    outputs: list[Tensor] = []
    handle = model.clip.visual.ln_post.register_forward_hook(lambda *a: outputs.append(a[-1]))
    with torch.no_grad():
        model.clip.encode_image(model.preprocess(images))
    handle.remove()
    return outputs[0][:, 0]


@pytest.mark.parametrize("pull", [None, 0.5])
def test_loss_gradient_and_five_steps_of_adam(
    pull: float | None, tiny: Build, source: Source
) -> None:
    recipe = Recipe(epochs=5, batch_size=100, lr=0.01, schedule="constant")
    strategy = Watched(
        model=tiny(), class_names=source.class_names, recipe=recipe,
        options=ProlipOptions(pull=pull),
    )  # fmt: skip
    task = build_scenario("s", source, tasks=3).benchmark.train_stream[0]
    strategy.train(task, eval_streams=[])
    model = tiny()
    model.add_classes(list(source.class_names), strategy.templates)
    rows = before_projection(model, torch.stack([row[0] for row in task.dataset]))
    labels, text = torch.tensor(list(task.dataset.targets)), model.zero_shot_text_features[:2]
    start = model.clip.visual.proj.detach()
    weight = start.clone().requires_grad_()
    rate = 0.5 if pull else 1 / 8  # 8 images of each class
    optimizer = torch.optim.Adam([weight], 0.01)
    assert len(strategy.seen) == 5
    for loss, gradient in strategy.seen:
        features = rows @ weight
        features = features / features.norm(dim=1, keepdim=True)
        expected = F.cross_entropy(model.logit_scale * features @ text.T, labels)
        expected = expected + rate * F.mse_loss(weight, start, reduction="sum")
        optimizer.zero_grad()
        expected.backward()
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-3, atol=1e-4)
        assert weight.grad is not None
        torch.testing.assert_close(gradient, weight.grad, rtol=1e-2, atol=1e-3)
        optimizer.step()
    (trained,) = strategy.selection.values()
    assert (trained - start).abs().max() > 0.03
    torch.testing.assert_close(trained.detach(), weight.detach(), rtol=1e-3, atol=1e-3)


def test_scores_are_those_of_the_tuned_tower(tiny: Build, source: Source) -> None:
    strategy = Prolip(model=tiny(), class_names=source.class_names, recipe=Recipe(epochs=2, lr=0.1))
    for task in build_scenario("s", source, tasks=3).benchmark.train_stream:
        strategy.train(task, eval_streams=[])
    images, model = source.test.images, strategy.model
    with torch.no_grad():
        tower = model(images)
        features = model.image_features(images)
        once = strategy.score_all(model.image_rows(images, 1))
    scores = strategy.score_all(images)
    torch.testing.assert_close(scores, tower, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(strategy.name_features(images), features, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scores, once, rtol=1e-4, atol=1e-4)


def test_images_of_a_run_are_encoded_once(
    tiny: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    real: Any = CLIPClassifier.image_rows

    def counting(self: CLIPClassifier, images: Tensor, tokens: int) -> Tensor:
        encoded.append(len(images) * (images.dim() == 4))
        return real(self, images, tokens)

    def never(*_: object) -> None:
        raise AssertionError("the image tower was called")

    monkeypatch.setenv("CL_CLIPFIT_DATA", str(tmp_path / "cache"))  # others may have encoded them
    monkeypatch.setattr(CLIPClassifier, "image_rows", counting)
    monkeypatch.setattr("cl_clipfit.clip.encoders.towers.Towers.encode_images", never)
    command = [*TINY, "--output", str(tmp_path), "--strategy", "prolip", "--epochs", "3"]
    assert main([*command, "--set", "prolip.batch_size=8"]) == 0
    assert sum(encoded) == 48  # its test images are its training images


def test_the_published_number_of_parameters() -> None:
    names, clip = chosen(Prolip, ProlipOptions())
    assert names == ["visual.proj"]
    assert clip.get_parameter(names[0]).numel() == 768 * 512 == 393_216
    strategy: Any = object.__new__(Prolip)
    strategy.model = type("Model", (), {"clip": build("RN50")})
    with pytest.raises(UserError, match="needs a ViT of open_clip"):
        strategy.trainable()
