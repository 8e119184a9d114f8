"""What is wrong with a command that cannot be parsed: one line that says what to type instead."""

import difflib
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin

import cyclopts
from cyclopts import App

from cl_clipfit.cli.habits import instead, meant
from cl_clipfit.cli.help import ALL, placeholder
from cl_clipfit.config.command import RunConfig
from cl_clipfit.errors import program, shown_first

_EXPECTED: dict[Any, str] = {int: "a whole number", float: "a number"}


def commands(within: App) -> list[str]:
    """Return the names of commands, without the switches that cyclopts counts among them."""
    return [name for name in within if not name.startswith("-")]


def explain_mistake(app: App, error: cyclopts.CycloptsError, words: Sequence[str]) -> str:
    """Return what is wrong with a command, where, and what to type.

    Args:
        app: the command line.
        error: what cyclopts says.
        words: the command.
    """
    if isinstance(error, cyclopts.UnknownCommandError | cyclopts.UnusedCliTokensError):
        return _unexpected(app, error, words)
    if isinstance(error, cyclopts.UnknownOptionError):
        return _unknown_option(app, error, error.token.keyword or error.token.value)
    if isinstance(error, cyclopts.MissingArgumentError):
        return _missing(app, error)
    if isinstance(error, cyclopts.CoercionError):
        return _no_value(error)
    return str(error)


def bare_list(words: Sequence[str]) -> str:
    """Return what is wrong with an option of a run that takes values and has none; "" if nothing.

    cyclopts takes it as an empty list. `--probe` alone is one: no probes.

    Example:
        >>> bare_list(["--seed", "1", "--log"])[:17], bare_list(["--probe", "--seed", "1"])
        ('--log needs a val', '')
    """
    for word, following in pairwise([*words, "--"]):
        name = word.removeprefix("--").replace("-", "_")
        field = RunConfig.model_fields.get(name) if word.startswith("--") else None
        if field is None or not following.startswith("--") or name == "probe":
            continue
        kinds = (field.annotation, *get_args(field.annotation))
        if any(get_origin(kind) is list for kind in kinds):
            about = shown_first(field.description or "")
            return f"{word} needs a value ({about}): {word} {placeholder(field.annotation)}"
    return ""


def _unexpected(app: App, error: Any, words: Sequence[str]) -> str:
    """Say what is wrong with a word that is neither a command nor a value."""
    word, chain = error.unused_tokens[0], error.command_chain or ()
    within = app["bank"] if chain[:1] == ("bank",) else app
    names = ", ".join(commands(within))
    options = [w.partition("=")[0] for w in words[: words.index(word)] if w.startswith("--")]
    if options:
        text = f"'{word}' is one value too many for {options[-1]}"
        return text if chain else f"{text}, and no command: commands are {names}"
    if chain and chain != ("bank",):
        return f"{' '.join(chain)}: '{word}' is one argument too many"
    return f"unknown command '{' '.join([*chain, word])}', commands are {names}{meant(word)}"


def _unknown_option(app: App, error: cyclopts.CycloptsError, typed: str) -> str:
    """Say which option was meant, or where all of them are listed."""
    option = typed.partition("=")[0]
    text = f"{_where(error)}unknown option {option}"
    if known := instead(option):
        return f"{text}: here it is {known}"
    if close := difflib.get_close_matches(option, _options(_arguments(app, error)), n=1):
        return f"{text}: did you mean {close[0]}?"
    chain = error.command_chain or ()
    return f"{text}: {' '.join((program(), *chain, '--help' if chain else ALL))} lists the options"


def _missing(app: App, error: cyclopts.MissingArgumentError) -> str:
    """Say what an argument is, and show it in a whole command."""
    argument = error.argument
    assert argument is not None
    about = f" ({shown_first(argument.parameter.help)})" if argument.parameter.help else ""
    if error.keyword is not None:  # it was typed
        asked = f"{error.keyword} {placeholder(argument.hint)}"
        return f"{_where(error)}{error.keyword} needs a value{about}: {asked}"
    arguments = _arguments(app, error)
    options = _options(arguments)
    for word in error.unused_tokens or ():
        if word.startswith("--") and word.partition("=")[0] not in options:
            return _unknown_option(app, error, word)
    needed = [*_in_usage(arguments)]
    usage = " ".join((program(), *(error.command_chain or ()), *needed))
    return f"{_where(error)}{argument.name} is missing{about}: {usage}"


def _in_usage(arguments: Iterable[Any]) -> Iterable[str]:
    """Yield what a command needs: its arguments by name, and its options with a placeholder."""
    for argument in arguments:
        many = argument.field_info.kind is argument.field_info.VAR_POSITIONAL
        if argument.name.startswith("-"):
            if argument.required:
                yield f"{argument.name} {placeholder(argument.hint)}"
        elif argument.required or many:
            choices = placeholder(argument.hint)
            shown = choices if get_origin(argument.hint) is Literal else argument.name
            yield f"{shown} ..." if many else shown


def _no_value(error: cyclopts.CoercionError) -> str:
    """Say what a value must be."""
    token, argument, kind = error.token, error.argument, error.target_type
    if token is None or argument is None:
        return str(error)
    name = token.keyword or argument.name
    if kind is bool:
        return f"{name}={token.value}: it is a switch, leave out its value"
    if get_origin(kind) is Literal:
        *others, last = map(str, get_args(kind))
        expected = f"{', '.join(others)} or {last}"
    elif kind in _EXPECTED:
        expected = _EXPECTED[kind]
    else:
        return str(error)
    place = "" if token.keyword else _where(error)
    return f"{place}{name} {token.value}: expected {expected}"


def _where(error: cyclopts.CycloptsError) -> str:
    return f"{' '.join(error.command_chain)}: " if error.command_chain else ""


def _arguments(app: App, error: cyclopts.CycloptsError) -> Sequence[Any]:
    """Return the arguments and options of the command in question."""
    for name in error.command_chain or ():
        app = app[name]
    return app.assemble_argument_collection()


def _options(arguments: Iterable[Any]) -> list[str]:
    """Return the names of options, without those that cyclopts would invent to negate them."""
    names = list[str]()
    for argument in arguments:
        declared = argument.parameter.negative or ()
        names += [n for n in argument.names if n not in argument.negatives or n in declared]
    return [name for name in names if name.startswith("-")]
