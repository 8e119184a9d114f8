"""A finished run's bank merged, routed and continued: against the run's own tables."""

import hashlib
import inspect
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

import cl_clipfit
from cl_clipfit import merging
from cl_clipfit.cli.app import main
from cl_clipfit.commands import evaluate
from cl_clipfit.config.merge_settings import ALL, BY_NAME, CLOSED_FORM, MODES, Mode, ModeSettings
from cl_clipfit.experiment.reopen import FinishedRun, open_run
from cl_clipfit.merging.methods import merged_values
from cl_clipfit.report.display import ConsoleDisplay
from cl_clipfit.storage.checkpoints import Checkpoints
from cl_clipfit.storage.files import write_json
from tests.support.tiny import PLUGIN, TINY

TABLES = ("accuracy_matrix", "all_classes_matrix", "task_aware_matrix")
PROBED = ["--probe", "tiny-stream", "--epochs", "2", "--lr", "0.01", "--tasks", "3"]


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def read(path: Path) -> dict[str, Any]:
    return json.loads((path / "result.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    torch.set_num_threads(1)
    strategies = ["--strategy", "image-norms", "linear-head"]
    assert main([*TINY, *PROBED, *strategies, "--output", str(folder), "--device", "cpu"]) == 0
    return only(folder, "*-image-norms-*")


def evaluation(run: Path, **settings: Any) -> evaluate.BankEvaluation:
    quiet = ConsoleDisplay(Console(quiet=True), quiet=True)
    return evaluate.BankEvaluation(open_run(run, quiet), ModeSettings(**settings))


def test_latest_is_the_run_itself_and_limits_of_the_modes_are_known(run: Path) -> None:
    work, own = evaluation(run, alpha=1.0), read(run)
    latest = work.evaluate("latest").summary()
    assert [latest[name] for name in TABLES] == [own[name] for name in TABLES]
    assert latest["metrics"] == own["metrics"]
    assert work.evaluate("wise").summary()["metrics"] == own["metrics"]
    nothing = evaluation(run, alpha=0.0, scale=0.0)
    for mode in ("wise", "sum", "ties", "dare", "magmax"):
        table = nothing.evaluate(mode).summary()["all_classes_matrix"]
        assert all(row == own["all_classes_matrix"][0] for row in table), mode
    mean = work.evaluate("mean").summary()
    assert mean["all_classes_matrix"][:2] == own["all_classes_matrix"][:2]


def test_the_oracle_scores_each_task_with_its_own_weights(run: Path) -> None:
    result, own = evaluation(run).evaluate("oracle"), read(run)
    assert result.routed == [100.0] * 3
    assert result.batches == "mixed"
    summary, chosen = result.summary(), result.summary()["chosen_labels"]
    for t in (1, 2, 3):
        for j in range(t):
            assert chosen["accuracy_matrix"][t][j] == own["task_aware_matrix"][j + 1][j]
            assert summary["all_classes_matrix"][t][j] == own["all_classes_matrix"][j + 1][j]
        for j in range(t, 3):  # not learned yet: zero-shot
            assert summary["all_classes_matrix"][t][j] == own["all_classes_matrix"][0][j]
    assert summary["metrics"]["retention"] == 0.0


@pytest.mark.parametrize("rule", ["gaussian", "nearest-mean"])
def test_routing_is_the_same_in_mixed_batches_and_one_task_at_a_time(
    run: Path, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = evaluation(run, rule=rule).evaluate("routed")
    monkeypatch.setattr(evaluate, "_can_mix", lambda strategy, names: False)
    single = evaluation(run, rule=rule).evaluate("routed")
    assert (mixed.batches, single.batches) == ("mixed", "one task at a time")
    assert mixed.routed == single.routed
    assert mixed.board.summary() == single.board.summary()
    assert mixed.routed is not None
    assert mixed.routed[0] == 100.0
    assert min(mixed.routed) > 60  # colours are told apart by CLIP


def test_a_head_is_never_mixed_and_every_mode_runs(run: Path) -> None:
    work = evaluation(only(run.parent, "*-linear-head-*"), images=4)
    before = {n: p.clone() for n, p in work.strategy.model.named_parameters()}
    for mode in ALL:
        result = work.evaluate(mode)
        assert result.batches == ("one task at a time" if result.chosen else None)
        assert len(result.board.tables.seen) == 4
    for name, value in work.strategy.model.named_parameters():
        assert torch.equal(value, before[name])


def test_modes_are_the_merging_functions() -> None:
    base = {"a": torch.zeros(2)}
    values = [{"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([3.0, -4.0])}]
    expected = {
        "latest": [3.0, -4.0], "mean": [2.0, -1.0], "sum": [1.2, -0.6], "wise": [1.5, -2.0],
        "magmax": [3.0, -4.0],
    }  # fmt: skip
    for mode, wanted in expected.items():
        found = merged_values(BY_NAME[mode], values, base, ModeSettings())["a"]
        torch.testing.assert_close(found, torch.tensor(wanted))
    dense = ModeSettings(density=1.0, drop=0.0)
    signs = merged_values(BY_NAME["ties"], values, base, dense)["a"]
    torch.testing.assert_close(signs, torch.tensor([2.0, -4.0]))  # the sign of 2 - 4 is elected
    torch.testing.assert_close(
        merged_values(BY_NAME["dare"], values, base, dense)["a"], torch.tensor([2.0, -1.0])
    )
    assert set(expected) | {"ties", "dare"} == set(CLOSED_FORM)
    with pytest.raises(ValueError, match="no single set of weights"):
        merged_values(BY_NAME["routed"], values, base, dense)


class Loaded(Mapping[str, Tensor]):
    """Values of a task that are loaded when they are asked for, and a log of what was."""

    def __init__(self, values: dict[str, Tensor], log: list[str]) -> None:
        self.values_, self.log = values, log

    def __getitem__(self, name: str) -> Tensor:
        self.log.append(name)
        return self.values_[name]

    def __contains__(self, name: object) -> bool:
        return name in self.values_

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)


@pytest.mark.parametrize("name", [name for name in CLOSED_FORM if name != "latest"])
def test_a_merge_asks_for_one_tensor_of_every_task_at_a_time(name: str) -> None:
    draws = torch.Generator().manual_seed(0)
    names = ["a", "b", "c"]
    base, *tasks = ({n: torch.randn(4, generator=draws) for n in names} for _ in range(4))
    log: list[str] = []
    lazy = [Loaded(task, log) for task in tasks]
    merged = merged_values(BY_NAME[name], lazy, base, ModeSettings())
    plain = merged_values(BY_NAME[name], tasks, base, ModeSettings())
    assert all(torch.equal(merged[n], plain[n]) for n in names)
    # TIES goes through every task once before, for its threshold; all merge name after name.
    uses = 1 if name == "wise" else len(tasks)
    assert log[-uses * len(names) :] == [n for n in names for _ in range(uses)]


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode.merges], ids=lambda m: m.name)
def test_the_table_names_functions_and_what_they_take(mode: Mode) -> None:
    parameters = list(inspect.signature(getattr(merging, mode.function)).parameters)
    names = {"last": "end", "base": "start"} if mode.name == "wise" else {}
    assert [names.get(name, name) for name in mode.takes] == parameters[: len(mode.takes)]
    assert set(mode.settings(ModeSettings())) <= set(ModeSettings.model_fields)


def checkpoint_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the size of every checkpoint that is written from now on."""
    sizes, save = [], Checkpoints.save

    def saved(self: Checkpoints, state: dict[str, Any]) -> None:
        save(self, state)
        assert self.newest is not None
        sizes.append(self.newest.stat().st_size)

    monkeypatch.setattr(Checkpoints, "save", saved)
    return sizes


def test_a_checkpoint_of_a_merge_is_as_large_as_one_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The solutions that are continued are in the bank, and not in every checkpoint too."""
    common = [*TINY, "--tasks", "6", "--output", str(tmp_path), "--quiet", "--device", "cpu"]
    host = ["--strategy", "image-norms", "mergetune:host=image-norms,merge_epochs=1,landscape=off"]
    sizes = checkpoint_bytes(monkeypatch)
    assert main([*common, *host]) == 0
    trained = max(sizes)
    sizes.clear()
    quick = ["--set", "mergetune.merge_epochs=1", "mergetune.landscape=off"]
    run = str(only(tmp_path, "*-image-norms-*"))
    assert main(["merge", run, "--method", "mergetune", *quick, *PLUGIN]) == 0
    assert len(sizes) >= 6
    assert max(sizes) <= 1.1 * trained


def test_a_run_of_another_version_is_opened_with_a_warning(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / run.name
    shutil.copytree(run, folder)
    result = read(folder)
    result["environment"]["cl_clipfit"], result["digest"] = "0.1.0", "01234567"
    write_json(folder / "result.json", result)
    assert main(["bank", "eval", str(folder), "--mode", "latest", *PLUGIN]) == 0
    assert "was made by cl_clipfit 0.1.0" in capsys.readouterr().err
    result["environment"]["cl_clipfit"] = cl_clipfit.__version__
    write_json(folder / "result.json", result)
    assert main(["bank", "eval", str(folder), "--mode", "latest", *PLUGIN]) == 2
    assert "are not those that the run was made with" in capsys.readouterr().err


def test_bank_eval_prints_and_keeps_a_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "bank",
                "eval",
                str(run),
                "--mode",
                "latest",
                "routed",
                "--rule",
                "nearest-mean",
                *PLUGIN,
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "rule=nearest-mean" in shown
    assert [line for line in shown.splitlines() if line.startswith("scores: ")] == [
        f"scores: {run}/bank-eval.{kind}" for kind in ("json", "csv")
    ]
    kept = json.loads((run / "bank-eval.json").read_text())
    assert [mode["mode"] for mode in kept["modes"]] == ["latest", "routed"]
    assert (run / "bank-eval.csv").read_text().count("\n") == 3


@pytest.fixture(scope="module")
def one_shot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with a training image of each class."""
    folder = tmp_path_factory.mktemp("one-shot")
    command = [*TINY, *PROBED, "--strategy", "image-norms", "--shots", "1", "--device", "cpu"]
    assert main([*command, "--output", str(folder), "--quiet"]) == 0
    return only(folder, "*-image-norms-*")


@pytest.mark.parametrize("modes", [("all",), ("latest", "routed"), ("routed", "mean")])
def test_modes_that_can_be_computed_are_shown_and_the_others_have_a_reason(
    one_shot: Path, modes: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bank", "eval", str(one_shot), "--mode", *modes, *PLUGIN]) == 0
    reason = "routed cannot be computed: --mode routed: the gaussian rule needs a class with two"
    assert f"warning: {reason}" in capsys.readouterr().err
    kept = json.loads((one_shot / "bank-eval.json").read_text())
    asked = ALL if modes == ("all",) else modes
    assert [mode["mode"] for mode in kept["modes"]] == [m for m in asked if m != "routed"]
    assert [*kept["not_computed"]] == ["routed"]
    assert main(["verify", str(one_shot)]) == 0


def test_a_mode_alone_that_cannot_be_computed_is_an_error(
    one_shot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bank", "eval", str(one_shot), "--mode", "routed", *PLUGIN]) == 2
    assert "use nearest-mean" in capsys.readouterr().err
    assert main(["merge", str(one_shot), "--method", "ties", *PLUGIN]) == 0
    merged = only(one_shot.parent, "*-image-norms+ties-*")
    assert main(["bank", "eval", str(merged), "--mode", "all", *PLUGIN]) == 0


def test_one_task_needs_no_covariance_to_route_to_it(run: Path) -> None:
    statistics = [{"means": torch.zeros(1, 16)}]
    features = torch.randn(5, 16)
    assert evaluation(run)._router(statistics)(features).tolist() == [0] * 5


def test_a_merge_is_a_run_of_its_own(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", str(run), "--method", "mean", *PLUGIN]) == 0
    assert "about" not in capsys.readouterr().err  # it is done before it could be announced
    merged = only(run.parent, "*-image-norms+mean-*")
    result = read(merged)
    bank = hashlib.sha256((run / "bank" / "index.json").read_bytes()).hexdigest()
    assert result["merged"] == {"method": "mean", "settings": {}, "run": run.name, "bank": bank}
    assert result["label"] == "image-norms + mean"
    mean = evaluation(run).evaluate("mean").summary()
    assert [result[name] for name in TABLES] == [mean[name] for name in TABLES]
    latest = evaluation(merged).evaluate("latest").summary()  # its own bank holds the merged values
    assert [latest[name] for name in TABLES] == [mean[name] for name in TABLES]
    assert main(["merge", str(run), "--method", "mean", *PLUGIN]) == 0
    assert "complete, shown again" in capsys.readouterr().err
    assert main(["--config", str(merged / "config.yaml")]) == 2
    assert "run.py merge" in capsys.readouterr().err


def test_mergetune_continues_a_finished_run(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cl_clipfit.experiment.run.LONG_RUN_SECONDS", 0)
    assert (
        main(
            [
                "merge",
                str(run),
                "--method",
                "mergetune",
                "--set",
                "mergetune.merge_epochs=1",
                *PLUGIN,
            ]
        )
        == 0
    )
    assert "mergetune: about 0 minutes on cpu" in capsys.readouterr().err
    result, own = read(only(run.parent, "*-image-norms+mergetune-*")), read(run)
    host = result["merge"]["compared"]["host"]
    assert [host[name] for name in TABLES] == [own[name] for name in TABLES]
    assert result["options"]["trajectory"] == "read-out"
    assert result["host"]["name"] == "image-norms"
    assert all(task["ratio_to_zero_shot"] not in (0, 1) for task in result["merge"]["tasks"])


def test_what_is_wrong_is_said_in_a_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    file = copy / "bank" / "task-002.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    for arguments, message in (
        (["bank", "eval", str(run), "--mode", "meen"], "Did you mean 'mean'"),
        (["merge", str(run), "--method", "oracle"], "--method oracle: unknown"),
        (["merge", str(run), "--method", "ties", "--density", "0"], "density"),
        (["merge", str(run), "--method", "ties", "--set", "mergetune.beta=1"], "only --method"),
        (["merge", str(run), "--method", "mergetune", "--set", "full.lr=1"], "--set full"),
        (["merge", str(run), "--method", "mergetune", "--set", "mergetune.lr=1"], "of the run"),
        (["merge", str(run), "--method", "mergetune", "--set", "mergetune.host=x"], "of the run"),
        (["merge", str(run), "--method", "ties", "--alpha", "0.3"], "--alpha has no effect"),
        (["bank", "eval", str(run), "--mode", "mean", "--alpha", "3"], "--alpha has no effect"),
        (["merge", str(tmp_path), "--method", "ties"], "not a run folder"),
        (["bank", "eval", str(copy), "--mode", "latest"], "task-002.safetensors is damaged"),
    ):
        assert main([*arguments, *PLUGIN]) == 2, arguments
        error = capsys.readouterr().err.splitlines()[-1]
        assert message in error, (message, error)


def test_open_run_gives_back_what_was_run(run: Path) -> None:
    opened: FinishedRun = open_run(run, ConsoleDisplay(Console(quiet=True), quiet=True))
    assert opened.plan.label == "image-norms"
    opened.at_task(2)
    assert (opened.strategy.task_classes, opened.strategy.seen_classes) == ([2, 3], [0, 1, 2, 3])
    assert len(opened.bank) == 3
