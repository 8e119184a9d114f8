"""Joint and cumulative training: against the host on the same images as tasks of another stream."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cl_clipfit import Source, build_scenario, open_run
from cl_clipfit.cli.app import main
from cl_clipfit.registry import Registry
from tests.support.over_host import SGD, Build, made, trained
from tests.support.tiny import TINY


def weights_of(model: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("host", ["full", "clipfit"])
def test_joint_is_the_host_on_a_stream_of_one_task(host: str, tiny: Build, source: Source) -> None:
    """In the order of the tasks, so that batches are the same."""
    stream = build_scenario("s", source, tasks=3, order="seed:1")
    joint = made("joint", tiny, stream, host)
    first, *later = stream.benchmark.train_stream
    joint.train(first, eval_streams=[], shuffle=False)
    after_first, steps = weights_of(joint.model), joint.task_steps
    joint.train(later, eval_streams=[], shuffle=False)

    tasks = stream.train.tasks
    assert tasks is not None
    order = torch.argsort(tasks, stable=True)
    train, every = stream.train.subset(order), [torch.arange(len(order))]
    whole = replace(stream, train=train, experiences=every, experience_tasks=[0])
    alone = Registry().strategy_class(host)(
        model=tiny(), class_names=stream.class_names, recipe=SGD
    )
    expected = trained(alone, whole)
    assert steps == alone.task_steps == 16
    assert all(map(torch.equal, after_first, expected))
    assert all(map(torch.equal, weights_of(joint.model), expected))


def test_cumulative_trains_on_all_images_so_far(tiny: Build, source: Source) -> None:
    stream = build_scenario("s", source, tasks=3, order="seed:1")
    cumulative = made("cumulative", tiny, stream)
    seen: list[tuple[int, list[int]]] = []
    real = cumulative.compute_loss

    def watched(logits: Tensor, labels: Tensor) -> Tensor:
        seen.append((len(labels), logits[0].isfinite().nonzero().flatten().tolist()))
        return real(logits, labels)

    cumulative.compute_loss = watched
    for task, experience in enumerate(stream.benchmark.train_stream, 1):
        before = weights_of(cumulative.model)
        seen.clear()
        cumulative.train(experience, eval_streams=[])
        assert sum(count for count, _ in seen) == 2 * 16 * task
        assert all(ranked == [*range(2 * task)] for _, ranked in seen)
        assert not all(map(torch.equal, before, weights_of(cumulative.model)))


def test_the_second_task_of_cumulative_is_the_host_on_the_union(
    tiny: Build, source: Source
) -> None:
    stream = build_scenario("s", source, tasks=2)
    cumulative = made("cumulative", tiny, stream)
    weights = trained(cumulative, stream)
    one, two = stream.experiences
    union = replace(stream, experiences=[one, torch.cat([one, two])], experience_tasks=[0, 1])
    full = Registry().strategy_class("full")(
        model=tiny(), class_names=stream.class_names, recipe=SGD
    )
    assert all(map(torch.equal, weights, trained(full, union)))


def test_results_say_that_all_images_are_kept_and_count_them(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    command = [*TINY, "--epochs", "1", "--quiet", "--strategy", "joint:host=bitfit", "cumulative"]
    assert main([*command, "--output", str(tmp_path)]) == 0
    for folder in sorted(tmp_path.glob("*/")):
        run = open_run(folder)
        kept, tasks = run.result["kept"], len(run.result["tasks"])
        assert kept["exemplars"] == "all"
        first, last = kept["bytes"][0], kept["bytes"][-1]
        assert first == (last if "joint" in folder.name else last // tasks)
        assert last == run.scenario.train.images.numel()
    assert "several tasks at once" in refused(*command, "--online", "4")
