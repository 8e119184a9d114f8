"""A command, parsed once: its settings, and the strategies and scenarios that it names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cl_clipfit.config.command import RunConfig
from cl_clipfit.config.parsing import Assigned, Spec, parse_settings, parse_spec


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
