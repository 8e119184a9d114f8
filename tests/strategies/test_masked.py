"""SIFT and SPU: exactly the chosen entries move, and they are those of the largest gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cl_clipfit import CLIPClassifier, Recipe, Source, build_scenario
from cl_clipfit.strategies.sift import Sift, SiftOptions
from cl_clipfit.strategies.spu import Spu, SpuOptions
from tests.support.published import chosen

Build = Callable[..., CLIPClassifier]
CASES = [(Sift, SiftOptions(share=0.03)), (Spu, SpuOptions())]


@pytest.mark.parametrize(("cls", "options"), CASES)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_exactly_the_entries_of_the_largest_gradients_move(
    cls: Any, options: Any, optimizer: Any, tiny: Build, source: Source,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    changed: dict[str, torch.Tensor] = {}  # whether an entry moved in any step of the task
    update = cls.update_weights

    def watch(strategy: Any) -> None:
        before = {name: p.detach().clone() for name, p in strategy.selection.items()}
        update(strategy)
        for name, value in strategy.selection.items():
            changed[name] = changed.get(name, False) | (value.detach() != before[name])

    monkeypatch.setattr(cls, "update_weights", watch)
    recipe = Recipe(
        epochs=2, batch_size=8, lr=0.01, optimizer=optimizer, weight_decay=0.1, momentum=0.9
    )
    strategy = cls(model=tiny(), class_names=source.class_names, recipe=recipe, options=options)
    tasks = build_scenario("s", source, tasks=3).benchmark.train_stream
    for number, task in enumerate(tasks):
        model = tiny()
        model.load_state_dict(strategy.model.state_dict(), strict=False)
        model.add_classes(list(source.class_names), strategy.templates)
        changed.clear()
        strategy.train(task, eval_streams=[])
        # Gradients in plain PyTorch, of the quarter of the images that the strategy looks at.
        images, labels = strategy.task_sample(4, task)
        names = list(strategy.selection)
        values = [model.get_parameter(n).requires_grad_() for n in names]
        logits = model(images, strategy.task_classes)
        targets = labels - 2 * number
        gradients = torch.autograd.grad(F.cross_entropy(logits, targets), values)
        for name, value, gradient in zip(names, values, gradients, strict=True):
            moved = changed[name]
            assert torch.equal(moved, strategy.masks[name]), name
            assert torch.equal(strategy.model.get_parameter(name)[~moved], value[~moved]), name
            size = gradient.abs()
            count = strategy.entries(name, value.numel())
            assert int(moved.sum()) == count
            if count < value.numel():
                smallest = size.flatten().sort(descending=True).values[count - 1]
                assert (size[moved] >= smallest * 0.999).all(), name
    assert strategy.trained_numbers() == sum(int(m.sum()) for m in strategy.masks.values())
    assert "masks" not in strategy.state_dict()


@pytest.mark.parametrize(
    ("cls", "options", "count"),
    [
        # int(1 %) + 1 of matrices with 3, 1, 4 and 4 times width^2 entries in 12 blocks.
        (
            Sift,
            SiftOptions(),
            sum(12 * (int(0.01 * n * w * w) + 1) for n in (3, 1, 4, 4) for w in (768, 512)),
        ),
        (Spu, SpuOptions(), 4_544_088),
    ],
)
def test_published_numbers_of_entries(cls: Any, options: Any, count: int) -> None:
    names, clip = chosen(cls, options)
    strategy = object.__new__(cls)
    strategy.options = options
    sizes = {name: clip.get_parameter(name).numel() for name in names}
    assert sum(strategy.entries(f"clip.{n}", size) for n, size in sizes.items()) == count
    if cls is Sift:
        assert sum(sizes.values()) == 12 * 12 * (768**2 + 512**2) == 122_683_392
        assert count == 1_226_868
