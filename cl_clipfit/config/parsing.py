"""Parse a command: its labels, `NAME[:key=value,...]`, and its assignments, `NAME.key=value`."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cl_clipfit.config.command import RunConfig
from cl_clipfit.config.text_files import load_yaml
from cl_clipfit.errors import UserError

Assigned = Mapping[str, Mapping[str, Any]]  # settings of `--set`, by name of strategy or scenario


@dataclass(frozen=True)
class Spec:
    """A label of a command: a strategy or scenario with settings.

    Attributes:
        text: the label, such as "full:ce_scope=task".
        name: name of the strategy or scenario.
        settings: the settings after the name.
        word: a bare word before these, which only some strategies take.
    """

    text: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    word: str = ""


def parse_spec(text: str, option: str = "--strategy") -> Spec:
    """Parse `NAME[:key=value,...]`, a strategy or scenario with settings.

    The first setting of a strategy may be a bare word, as in "avalanche:replay".

    Raises:
        UserError: the settings are malformed.

    Example:
        >>> parse_spec("full:ce_scope=task,lr=1e-4").settings
        {'ce_scope': 'task', 'lr': '1e-4'}
        >>> parse_spec("clipfit:vocabulary=[cat, dog],kd=cosine").settings
        {'vocabulary': ['cat', 'dog'], 'kd': 'cosine'}
        >>> parse_spec("avalanche:replay,mem_size=200").word
        'replay'
    """
    name, colon, given = text.strip().partition(":")
    settings: dict[str, Any] = {}
    word, comma, after = given.partition(",")
    if option == "--strategy" and name and re.fullmatch(r"\s*[A-Za-z][\w-]*\s*", word):
        given, colon, word = after, comma, word.strip()
    else:
        word = ""
    for item in re.split(r",(?![^\[]*\])", given) if colon else ():  # commas outside brackets
        key, equals, value = item.strip().partition("=")
        if not (name and equals and key.isidentifier()):
            raise malformed(text, option)
        settings |= parse_settings([f"{name}.{key}={value}"]).get(name, {})
    return Spec(text, name, settings, word)


def malformed(text: str, option: str = "--strategy") -> UserError:
    """Return the error of a label that cannot be understood."""
    example = "clipfit:kd_weight=2" if option == "--strategy" else "mtil:datasets=dtd+eurosat"
    return UserError(f"{option} {text}: expected NAME:key=value,key=value, as in {example}")


def parse_settings(assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Parse `NAME.key=value` strings into {NAME: {key: value}}.

    A value stays text, to be parsed by the type of the option; `null`, and a value that starts with
    a quote, a bracket or a brace, is YAML.

    Raises:
        UserError: an assignment is malformed.

    Example:
        >>> parse_settings(["clipfit.kd_weight=8", "clipfit.kd=none"])
        {'clipfit': {'kd_weight': '8', 'kd': 'none'}}
    """
    settings: dict[str, dict[str, Any]] = {}
    for text in assignments:
        target, equals, value = text.partition("=")
        name, dot, key = target.strip().rpartition(".")
        if not (equals and dot and name and key):
            raise UserError(f"--set {text}: expected NAME.key=value, as in clipfit.kd_weight=8")
        is_yaml = value == "null" or value.startswith(("[", "{", '"', "'"))
        try:
            settings.setdefault(name, {})[key] = load_yaml(value) if is_yaml else value
        except Exception as error:  # PyYAML may raise anything on values of a wrong type
            raise UserError(f"--set {text}: the value is not valid YAML") from error
    return settings


def format_setting(value: Any) -> str:
    """Write a value so that `parse_settings` and the option's type read it back.

    Example:
        >>> [format_setting(v) for v in (0.5, "none", None, "null", [1, 2])]
        ['0.5', 'none', 'null', '"null"', '[1, 2]']
    """
    if isinstance(value, str) and value != "null" and not value.startswith(("[", "{", '"', "'")):
        return value
    return json.dumps(value)


@dataclass(frozen=True)
class Command:
    """The parsed command.

    Attributes:
        config: all settings.
        scenario: the stream, with the settings in its label.
        strategies: the methods without duplicates, with the settings in their labels.
        assigned: the settings of `--set`, by name of strategy or scenario.
    """

    config: RunConfig
    scenario: Spec
    strategies: tuple[Spec, ...]
    assigned: Assigned

    def settings_of(self, name: str) -> dict[str, Any]:
        """Return the settings that `--set` gives a strategy or scenario."""
        return dict(self.assigned.get(name, {}))


def parse_command(config: RunConfig, strategies: Sequence[str] | None = None) -> Command:
    """Parse the names and assignments of a command.

    Args:
        config: all settings.
        strategies: replaces the methods of `config`.

    Raises:
        UserError: a name or an assignment is malformed.
    """
    labels = config.strategy if strategies is None else strategies
    return Command(
        config,
        parse_spec(config.scenario, "--scenario"),
        tuple(parse_spec(label) for label in dict.fromkeys(labels)),
        parse_settings(config.set),
    )
