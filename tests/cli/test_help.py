"""What the command line says of itself: help, settings, completion, and words of other programs."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cl_clipfit.cli import help as screens
from cl_clipfit.cli.app import app, main
from cl_clipfit.cli.mistakes import commands
from cl_clipfit.config.command import OutputSettings, RunConfig, read_config
from tests.support.commands import parse

Read = Callable[..., str]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Read:
    def read(*arguments: str) -> str:
        assert main(list(arguments)) == 0
        return capsys.readouterr().out

    return read


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"], ["--seed", "1", "--help"]])
def test_help_fits_one_screen(arguments: list[str], printed: Read) -> None:
    lines = printed(*arguments).splitlines()
    assert len(lines) <= 50
    assert all(len(line) <= 80 for line in lines[1:])  # the first is as long as the path to Python
    assert [line for line in lines if line and not line.startswith(" ")][2:-1] == [
        "Commands (without one: train and score; COMMAND --help)",
        "Stream and data", "Methods", "Model and machine", "Results",
    ]  # fmt: skip
    words = "\n".join(lines).split()
    assert set(commands(app)) <= set(words)
    assert {"--scenario", "--strategy", "--seed", "--dry-run", "--print-config"} <= set(words)
    assert "--blurry" not in words


def test_all_options_are_in_the_long_help(printed: Read) -> None:
    text = printed("--help-all")
    for name, field in RunConfig.model_fields.items():
        (line,) = [n for n in text.splitlines() if n.startswith(f"  --{name.replace('_', '-')}")][
            :1
        ]
        assert line.split()[1:], name
        assert (field.description or "").split()[0] in line
    assert "[default: zero-shot clipfit mergetune stack]" in " ".join(text.split())
    short = printed("--help")
    rare = set(RunConfig.model_fields) - set(screens._COMMON)
    assert f"--help-all shows {len(rare)} more options" in short


def test_a_subcommand_has_help_of_its_own(printed: Read) -> None:
    assert "--skip-bad-images" not in printed("bank", "--help")
    assert "--top" in printed("predict", "--help")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--quiet"],
        ["--seed", "0", "1", "--template", "a {}.", "[]", "--class-order", "seed:1", "seed:2"],
        ["--scenario", "folder", "--data-dir", ".", "--tasks", "3", "--validation", "0.25"],
        ["--strategy", "clipfit:kd_weight=2", "--set", "clipfit.lr=1e-3", "--shots", "4"],
    ],
)
def test_the_printed_settings_are_read_back(
    arguments: list[str], tmp_path: Path, printed: Read
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(printed(*arguments, "--print-config", "--fresh", "--quiet"))
    again, asked = (
        RunConfig.model_validate(settings) for settings in (read_config(file), parse(*arguments))
    )
    assert again == asked.model_copy(update={"quiet": False})
    text = printed("--config", str(file), "--print-config", "--epochs", "2")
    assert text.replace("epochs: 2\n", "") == file.read_text()
    assert sorted(tmp_path.iterdir()) == [file]  # nothing was run
    kept = {line.partition(":")[0] for line in text.splitlines() if line[0] not in "- "}
    assert kept & set(OutputSettings.model_fields) == {"output"}


def test_wrong_settings_are_not_printed(refused: Callable[..., str]) -> None:
    assert "Did you mean 'clipfit'?" in refused("--print-config", "--strategy", "clipfitt")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_written_and_said(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: Read
) -> None:
    for name in ("ZSH", "ZSH_CUSTOM", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    wrote, *_, last = printed("--install-completion", shell).splitlines()
    script = Path(wrote.removeprefix("wrote "))
    assert script.is_relative_to(tmp_path)
    text = script.read_text()
    assert "cl-clipfit" in text and "scenario" in text and "compare" in text
    assert last == f"start a new {shell}: it completes what follows cl-clipfit"
    if shell == "fish":
        return
    rc = tmp_path / f".{shell}rc"
    before = rc.read_text()
    assert str(script if shell == "bash" else script.parent) in before
    printed("--install-completion", shell)
    assert rc.read_text() == before
    if shell == "bash":
        subprocess.run(["bash", "-n", str(script)], check=True)


def test_completion_asks_for_a_shell_it_knows(refused: Callable[..., str]) -> None:
    assert "expected bash, zsh or fish" in refused("--install-completion", "tcsh")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["train", "--seed", "0,1,2"], {"seed": [0, 1, 2]}),
        (["--seed=0,1"], {"seed": [0, 1]}),
        (["--seed", "0,", "1,", "2"], {"seed": [0, 1, 2]}),
        (["--scenario", "split_digits"], {"scenario": "split-digits"}),
        (["--scenario=base_to_novel:dataset=dtd"], {"scenario": "base-to-novel:dataset=dtd"}),
        (["--strategy", "zero_shot,full"], {"strategy": ["zero-shot", "full"]}),
        (["--strategy", "full:lr=1,epochs=2"], {"strategy": ["full:lr=1,epochs=2"]}),
        (["l2_sp.pull=1"], {"set": ["l2-sp.pull=1"]}),
        (["--strategy", "full", "full.lr=1"], {"strategy": ["full"], "set": ["full.lr=1"]}),
        (["--strategy", "my_method"], {"strategy": ["my_method"]}),  # of a plug-in, as it says
        (["--output", "a_b", "--lr", "1"], {"output": Path("a_b"), "lr": 1.0}),
    ],
)
def test_habits_are_met(typed: list[str], meant: dict) -> None:
    from cl_clipfit.cli.habits import meet_habits

    assert parse(*meet_habits(typed)) == meant


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (["--gpu", "0"], "unknown option --gpu: here it is --device cuda"),
        (["--n_tasks=5"], "unknown option --n_tasks: here it is --tasks"),
        (["--seeds", "0"], "did you mean --seed?"),
        (["split_digits"], "'split-digits' is a scenario: --scenario split-digits"),
        (["train", "zero-shot"], "'zero-shot' is a strategy: --strategy zero-shot"),
        (["fit"], "commands are bank, "),
    ],
)
def test_other_habits_are_answered(
    typed: list[str], answer: str, refused: Callable[..., str]
) -> None:
    assert answer in refused(*typed)


def test_a_sentence_is_cut_where_it_may_end() -> None:
    assert screens.fitted("Merge a run; the result is a run", 20) == "Merge a run"
    assert screens.fitted("one two three four", 14) == "one two three…"


def test_a_newcomer_is_told_what_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Read
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("my_method.py", "runs-comparison.csv"):
        Path(name).touch()
    Path("images").mkdir()
    assert "my_method.py: --plugin my_method.py" in refused("--strategy", "my-method")
    assert "--scenario folder" in refused("--data-dir", "images")
    assert "new.png: there is no such file" in refused("predict", "images", "new.png")
    # `compare runs/*` also names the files of comparisons.
    assert "images: no finished run is in it" in refused("compare", "images", "runs-comparison.csv")
    assert "csv is not a folder" in refused("compare", "runs-comparison.csv")
