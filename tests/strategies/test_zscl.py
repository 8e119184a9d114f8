"""ZSCL: steps and average are those of plain PyTorch, for references of both kinds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cl_clipfit import CLIPClassifier, Recipe, Source, UserError, build_scenario
from cl_clipfit.strategies.zscl import ZSCL, ZSCLOptions

Build = Callable[..., CLIPClassifier]


def write_images(folder: Path, images: Tensor, names: tuple[str, ...]) -> None:
    """Write images, three for each name, as training and as test images."""
    for i, image in enumerate(images):
        for part in ("train", "test"):
            file = folder / part / names[i // 3] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)


def soft(logits: Tensor, target: Tensor) -> Tensor:
    """Return the divergence of rows at temperature 2, by cross-entropy with soft labels."""
    odds = (target / 2).softmax(1)
    return F.cross_entropy(logits / 2, odds) - F.cross_entropy(target / 2, odds)


@pytest.mark.parametrize("own", [True, False])
def test_steps_and_average_are_those_of_plain_pytorch(
    own: bool, tiny: Build, source: Source, tmp_path: Path
) -> None:
    names, shown = ("cat", "dog"), source.test.images[10:16]
    write_images(tmp_path, shown, names)
    options: dict[str, Any] = {"reference": "task"} if own else {"reference": str(tmp_path)}
    torch.manual_seed(0)
    strategy = ZSCL(
        model=tiny(), class_names=source.class_names,
        options=ZSCLOptions(**options, distil=0.5, smoothing=0.2, every=2, texts=("a cow", "x")),
        recipe=Recipe(epochs=5, batch_size=100, lr=0.05, optimizer="sgd", schedule="constant"),
    )  # fmt: skip
    draws = torch.Generator()
    draws.set_state(strategy.reference_draws.get_state())
    task = build_scenario("s", source, tasks=3).benchmark.train_stream[0]
    strategy.train(task, eval_streams=[])

    model, frozen = tiny(), tiny()
    names = source.class_names[:2] if own else names
    text = frozen.encode_names([*names, "a cow", "x"]).detach()
    model.add_classes(list(source.class_names[:2]))
    parameters = {n: p for n, p in model.named_parameters() if n != "clip.logit_scale"}
    for parameter in parameters.values():
        parameter.requires_grad_()
    kept = [{n: p.detach().clone() for n, p in parameters.items()}]
    optimizer = torch.optim.SGD(parameters.values(), 0.05, momentum=0.9)
    images, labels = torch.stack([row[0] for row in task.dataset]), task.dataset.targets
    distances = []
    for step in range(1, 6):
        chosen = images if own else shown[torch.randint(6, (16,), generator=draws)]
        features, before = (m.clip.encode_image(m.preprocess(chosen)) for m in (model, frozen))
        now, start = (
            model.logit_scale * F.normalize(f, dim=-1) @ text.T for f in (features, before)
        )
        distance = 4 * (soft(now, start) + soft(now.T, start.T))
        distances.append(float(distance.detach()))
        loss = F.cross_entropy(model(images), torch.tensor(list(labels)), label_smoothing=0.2)
        optimizer.zero_grad()
        (loss + 0.5 * distance).backward()
        optimizer.step()
        if step in (2, 4):
            kept.append({n: p.detach().clone() for n, p in parameters.items()})
    assert distances[0] < 1e-5 < 0.1 < max(distances)
    for name, trained in strategy.selection.items():
        mean = torch.stack([values[name] for values in kept]).mean(0)
        torch.testing.assert_close(trained.detach(), mean, rtol=1e-3, atol=1e-4)


def test_a_task_too_short_for_an_average_keeps_what_it_learned(tiny: Build, source: Source) -> None:
    strategy = ZSCL(model=tiny(), class_names=source.class_names, recipe=Recipe(epochs=1))
    strategy.train(build_scenario("s", source, tasks=3).benchmark.train_stream[0], eval_streams=[])
    start = strategy.model.pretrained_values
    assert any(not torch.equal(p, start[name]) for name, p in strategy.selection.items())


def test_outside_of_a_step_its_loss_needs_no_reference(tiny: Build, source: Source) -> None:
    strategy = ZSCL(model=tiny(), class_names=source.class_names, recipe=Recipe(epochs=1))
    strategy.train(build_scenario("s", source, tasks=3).benchmark.train_stream[0], eval_streams=[])
    images, labels = source.train.images[:4], torch.tensor([0, 1, 1, 0])
    expected = F.cross_entropy(strategy.model(images, [0, 1]), labels)
    torch.testing.assert_close(strategy.training_loss(images, labels), expected)


def test_an_unknown_reference_is_refused(tiny: Build, source: Source) -> None:
    options = ZSCLOptions(reference="imagenot")
    strategy = ZSCL(model=tiny(), class_names=source.class_names, options=options)
    task = build_scenario("s", source, tasks=3).benchmark.train_stream[0]
    with pytest.raises(UserError, match="unknown scenario 'imagenot'"):
        strategy.train(task, eval_streams=[])
