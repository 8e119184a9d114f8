"""What cannot be parsed is said in this program's words: what is wrong, and what to type."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cl_clipfit.cli.app import app
from cl_clipfit.cli.mistakes import commands

Refused = Callable[..., str]
_RAW = ("Command ", "Parameter", "parameter", "requires", "Invalid", "Choose", "convert", "Unused")


def arguments() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every argument of every command, with the words of the command."""
    for name in commands(app):
        for chain in [(name, n) for n in commands(app[name])] or [(name,)]:
            within = app
            for word in chain:
                within = within[word]
            for argument in within.assemble_argument_collection():
                yield chain, argument


def in_our_words(line: str) -> bool:
    return not any(word in line for word in _RAW)


REQUIRED = [(chain, argument.name) for chain, argument in arguments() if argument.required]
VALUED = [
    (chain, argument.name)
    for chain, argument in arguments()
    if argument.name.startswith("--") and argument.hint is not bool
]


@pytest.mark.parametrize("chain", sorted({chain for chain, _ in REQUIRED}), ids=" ".join)
def test_a_command_without_its_arguments_shows_a_whole_one(
    chain: tuple[str, ...], refused: Refused
) -> None:
    first = next(name for command, name in REQUIRED if command == chain)
    line = refused(*chain)
    assert line.startswith(f"error: {' '.join(chain)}: {first} is missing (")
    assert f"run.py {' '.join(chain)} " in line
    assert all(name in line for command, name in REQUIRED if command == chain and name[0] == "-")
    assert in_our_words(line)


def test_every_option_without_a_value_says_what_it_takes(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(VALUED) > 30
    for chain, name in VALUED:
        needed = [n for command, n in REQUIRED if command == chain and n[0] != "-"]
        line = refused(*chain, *("5" for _ in needed), name)
        assert in_our_words(line), (chain, name, line)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["extend", "RUN"], "extend: --data-dir is missing (folders of images of new classes, a"
         " task each): "),
        (["extend", "RUN"], "run.py extend RUN --data-dir PATH ..."),
        (["extend", "RUN", "--data_dri", "x"], "option --data_dri: did you mean --data-dir?"),
        (["extend", "RUN", "--data-dir"], "name a folder of images with --data-dir"),
        (["extend", ".", "--data-dir", "missing"], "--data-dir missing: there is no such folder"),
        (["extend", ".", "--data-dir", "x" * 300], "there is no such folder"),
        (["--then", "missing"], "--then missing: there is no such folder"),
        (["--then", "x" * 300], "there is no such folder"),
        (["predict", "RUN"], "predict: name at least one image file or folder"),
        (["predict", "RUN", "x.png", "--top", "two"], "--top two: expected a whole number"),
        (["bank", "show", "RUN", "x"], "bank show: TASK x: expected a whole number"),
        (["bank", "eval", "RUN", "--mode"], "--mode: expected at least one of latest, "),
        (["list"], "run.py list strategies|scenarios|models|metrics"),
        (["list", "all"], "list: WHAT all: expected strategies, scenarios, models or metrics"),
        (["sweep", "f", "--engine", "k8s"], "--engine k8s: expected local, slurm or ray"),
        (["sweep", "f", "--gpus", "all"], "--gpus all: expected a number"),
        (["--dry-run=maybe"], "--dry-run=maybe: it is a switch, leave out its value"),
        (["--seed"], "--seed needs a value (one run for each seed)"),
        (["--log", "--seed", "1"], "--log needs a value (write the history"),
        (["--seed", "1", "--strategy"], "--strategy needs a value (methods to run"),
        (["--then", "--quiet"], "--then needs a value (folders of images"),
        (["--tasks"], "--tasks needs a value (number of tasks, "),
        (["compare", "--against"], "compare: --against needs a value (test the differences"),
        (["--qqqq"], "run.py --help-all lists the options"),
        (["predict", "RUN", "x.png", "--qqqq"], "run.py predict --help lists the options"),
        (["verify", "RUN", "--reply"], "verify: unknown option --reply: did you mean --replay?"),
        (["landscape", "RUN", "--noplane"], "did you mean --no-plane?"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_with_what_to_type(
    typed: list[str], said: str, refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(*typed)
    assert said in line
    assert in_our_words(line)
