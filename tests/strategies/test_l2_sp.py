"""L2-SP: steps are those of plain PyTorch with the squared distance in the loss."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cl_clipfit import CLIPClassifier, Recipe, Source, build_scenario
from cl_clipfit.registry import Registry
from cl_clipfit.strategies.l2_sp import L2SP, L2SPOptions

Build = Callable[..., CLIPClassifier]


@pytest.mark.parametrize("host", ["bitfit", "ln-tune"])
def test_steps_are_those_of_plain_pytorch(host: str, tiny: Build, source: Source) -> None:
    strategy = L2SP.over(Registry().strategy_class(host))(
        model=tiny(), class_names=source.class_names, options=L2SPOptions(pull=3.0),
        recipe=Recipe(epochs=4, batch_size=100, lr=0.01, optimizer="sgd", schedule="constant"),
    )  # fmt: skip
    model = tiny()
    model.add_classes(list(source.class_names), strategy.templates)
    tasks = build_scenario("s", source, tasks=3).benchmark.train_stream[:2]
    start: dict[str, torch.Tensor] = {}
    for number, task in enumerate(tasks):  # the pull of the second is to the start of the first
        strategy.train(task, eval_streams=[])
        if not start:
            start = {n: model.get_parameter(n).detach().clone() for n in strategy.selection}
            values = {n: nn.Parameter(value.clone()) for n, value in start.items()}
        images = torch.stack([row[0] for row in task.dataset])
        labels = torch.tensor(list(task.dataset.targets))
        ranked = [2 * number, 2 * number + 1]
        optimizer = torch.optim.SGD(values.values(), 0.01, momentum=0.9)
        for _ in range(4):
            logits = torch.func.functional_call(model, dict(values), (images, ranked))
            moved = sum(F.mse_loss(v, start[n], reduction="sum") for n, v in values.items())
            optimizer.zero_grad()
            (F.cross_entropy(logits, labels - ranked[0]) + 1.5 * moved).backward()
            optimizer.step()
    for name, value in values.items():
        trained = strategy.selection[name].detach()
        torch.testing.assert_close(trained, value.detach(), rtol=1e-3, atol=2e-5)
    assert max(float((v - start[n]).detach().abs().max()) for n, v in values.items()) > 1e-3
