"""Words of other frameworks: understood where their meaning is certain, else answered."""

import re
from collections.abc import Sequence

from cl_clipfit.registry import Kind, Registry

_ASSIGNMENT = re.compile(r"[a-z][\w+-]*\.[a-z_]\w*=.+", re.DOTALL)
_SEEDS = re.compile(r"(\d+,)+\d*")
_NAMES = re.compile(r"[a-z][\w+-]*(,[a-z][\w+-]*)+")
_LISTS = ("--seed", "--strategy", "--scenario", "--probe")
_INSTEAD = {
    "--dataset": "--scenario", "--data": "--scenario", "--benchmark": "--scenario",
    "--method": "--strategy", "--algorithm": "--strategy", "--approach": "--strategy",
    "--backbone": "--model", "--arch": "--model", "--learning-rate": "--lr",
    "--num-epochs": "--epochs", "--n-epochs": "--epochs", "--num-tasks": "--tasks",
    "--n-tasks": "--tasks", "--bs": "--batch-size", "--gpu": "--device cuda",
    "--cuda": "--device cuda", "--output-dir": "--output", "--out": "--output",
    "--increment": "--tasks", "--init-cls": "--base-classes", "--fp16": "--precision bf16",
    "--amp": "--precision bf16", "--debug": "--limit 20 --epochs 1",
}  # fmt: skip


def instead(option: str) -> str | None:
    """Return what an option of other frameworks is called here, or None.

    Example:
        >>> instead("--gpu"), instead("--n_tasks"), instead("--gpux")
        ('--device cuda', '--tasks', None)
    """
    return _INSTEAD.get(option.replace("_", "-").lower())


def meant(word: str) -> str:
    """Return how to name a strategy or scenario that stands where a command is expected, or ""."""
    options: dict[Kind, str] = {"strategies": "--strategy", "scenarios": "--scenario"}
    for kind, option in options.items():
        if (name := _known(word, kind)) is not None:
            return f"; '{name}' is a {option[2:]}: {option} {name}"
    return ""


def _known(name: str, kind: Kind) -> str | None:
    """Return a registered name that differs from this at most by "_" for "-"."""
    names = [entry.name for entry in Registry().entries(kind)]
    return next((n for n in (name, name.replace("_", "-")) if n in names), None)


def _dashed(word: str, kind: Kind) -> str:
    """Return a word with the registered name that it begins with, where that has "-" for "_"."""
    name = re.split(r"[:.]", word, maxsplit=1)[0]
    return word if "_" not in name else (_known(name, kind) or name) + word[len(name) :]


def meet_habits(words: Sequence[str]) -> list[str]:
    """Return a command as it is meant by who is used to other frameworks.

    `train` before the options may be left in, seeds and names may be joined by commas, names may
    have "_" for "-", and `NAME.key=value` needs no `--set`.

    Example:
        >>> meet_habits(["train", "--seed", "0,1", "--strategy", "full", "full.lr=1e-4"])
        ['--seed', '0', '1', '--strategy', 'full', '--set', 'full.lr=1e-4']
        >>> meet_habits(["--scenario", "split_digits", "--strategy=zero_shot,full"])
        ['--scenario', 'split-digits', '--strategy', 'zero-shot', 'full']
        >>> meet_habits(["bank", "list", "a.b=c"])
        ['bank', 'list', 'a.b=c']
    """
    words = list(words)
    if words[:1] in (["train"], ["run"]):
        words = words[1:]
    if words == ["help"]:
        return ["--help"]
    if words and not (words[0].startswith("-") or _ASSIGNMENT.fullmatch(words[0])):
        return words  # another command
    option, kept, assigned = "", list[str](), list[str]()
    for word in _apart(words):
        if word.startswith("--"):
            option = word
        kind: Kind = "strategies" if option in ("", "--strategy", "--seed") else "scenarios"
        if option in ("", *_LISTS[:2]) and _ASSIGNMENT.fullmatch(word):
            assigned.append(_dashed(word, kind))
        elif option == "--seed" and _SEEDS.fullmatch(word):
            kept += [number for number in word.split(",") if number]
        elif option == "--strategy" and _NAMES.fullmatch(word):
            kept += [_dashed(name, kind) for name in word.split(",")]
        elif option in _LISTS and not word.startswith("-"):
            kept.append(_dashed(word, kind))
        else:
            kept.append(word)
    return [*kept, *(["--set", *assigned] if assigned else [])]


def _apart(words: Sequence[str]) -> list[str]:
    """Return the words with `--seed=0` as two."""
    apart = list[str]()
    for word in words:
        option, equals, value = word.partition("=")
        apart += [option, value] if equals and option in _LISTS else [word]
    return apart
