"""A task whose loss ranks one class teaches nothing, and a run says so."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cl_clipfit import CLIPClassifier, Recipe, Source, build_scenario
from cl_clipfit.cli.app import main
from cl_clipfit.errors import StrategyWarning
from cl_clipfit.storage.run_folder import read_result
from cl_clipfit.strategies.clipfit import ClipFit
from tests.support.methods import TwoGroups
from tests.support.tiny import TINY

LONE = "ranks one class is 0"


def run(output: Path, *arguments: str) -> dict[str, Any]:
    """Run a command on six classes; return the result of its last run."""
    assert main([*TINY, "--quiet", *arguments, "--output", str(output)]) == 0
    (path,) = output.glob("*/result.json")
    result = read_result(path)
    assert result is not None
    return result


def tasks_file(folder: Path, *tasks: list[int]) -> str:
    lines = [f"- [{', '.join(f'colour {c}' for c in classes)}]\n" for classes in tasks]
    (folder / "tasks.yaml").write_text("".join(lines))
    return str(folder / "tasks.yaml")


@pytest.mark.parametrize(
    ("stream", "strategy", "remedy"),
    [
        (["--tasks", "6"], "clipfit", "ce_scope=seen"),
        (["--tasks", "6"], "coop", "ce_scope=seen"),
        (
            ["--base-classes", "1", "--tasks", "2"],
            "full",
            "",
        ),  # its first task ranks the only class seen
        (["--base-classes", "5", "--tasks", "2"], "clipfit", "ce_scope=seen"),  # its last task
        (["--base-classes", "5", "--tasks", "2"], "clipfit:ce_scope=seen", None),
        (["--tasks", "6", "--online", "4"], "clipfit", "ce_scope=seen"),
        (
            ["--tasks", "2", "--online", "1", "--limit", "2"],
            "clipfit",
            None,
        ),  # pieces of one class, not tasks
        (["--tasks", "6", "--blurry", "0.5"], "clipfit", None),  # images of other classes too
        (["--tasks", "3"], "clipfit", None),
        (["--tasks", "6"], "zero-shot", None),
    ],
    ids=str,
)
def test_the_result_warns_where_a_loss_ranks_one_class(
    stream: list[str], strategy: str, remedy: str | None, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    result = run(tmp_path, *stream, "--strategy", strategy)
    found = [text for text in result["warnings"] if LONE in text]
    assert len(found) == (remedy is not None)
    assert capsys.readouterr().err.count(LONE) == len(found)
    for text in found:
        assert ("ce_scope" in text) == bool(remedy)


def test_a_tasks_file_with_a_lone_class(tmp_path: Path) -> None:
    file = tasks_file(tmp_path, [0, 1, 2], [3], [4, 5])
    result = run(tmp_path, "--tasks", file, "--strategy", "clipfit")
    assert [LONE in text for text in result["warnings"]] == [True]


def test_a_domain_of_one_class(tiny: Callable[..., CLIPClassifier], source: Source) -> None:
    """Tasks of a domain-incremental stream share classes, and one of them has a single one."""
    domain = (source.train.labels != 0).long()
    data = replace(source.train, tasks=domain)
    both = replace(source, train=data, test=data, task_names=("photo", "sketch"))
    stream = build_scenario("s", both).benchmark.train_stream
    strategy = ClipFit(model=tiny(), class_names=source.class_names, recipe=Recipe(epochs=1))
    with pytest.warns(StrategyWarning, match=LONE):
        strategy.train(stream[0], eval_streams=[])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        strategy.train(stream[1], eval_streams=[])


def test_an_own_method_is_warned_too(tiny: Callable[..., CLIPClassifier], source: Source) -> None:
    strategy = TwoGroups(model=tiny(), class_names=source.class_names, recipe=Recipe(epochs=1))
    stream = build_scenario("s", source, tasks=6).benchmark.train_stream
    with pytest.warns(StrategyWarning, match=LONE) as caught:
        strategy.train(stream, eval_streams=[])
    assert len([w for w in caught if w.category is StrategyWarning]) == 1  # not once per task


@pytest.mark.parametrize("scope", ["task", "seen"])
@pytest.mark.parametrize("others", [[], ["zero-shot"]], ids=str)
def test_a_fisher_of_one_class_is_refused_before_training(
    scope: str, others: list[str], refused: Callable[..., str], tmp_path: Path
) -> None:
    label = f"mergetune:metric=fisher,ce_scope={scope}"
    line = refused(*TINY, "--tasks", "6", "--strategy", *others, label, "--output", tmp_path)
    assert "before the first task" in line
    assert "metric=l2" in line
    assert not list(tmp_path.glob("*/result.json"))


def test_a_fisher_needs_two_classes_in_the_first_task_only(tmp_path: Path) -> None:
    file = tasks_file(tmp_path, [0, 1, 2], [3], [4, 5])
    label = "mergetune:metric=fisher,landscape=off"
    assert run(tmp_path, "--tasks", file, "--strategy", label)["complete"]
