"""A command, parsed once: its settings, and the strategies and scenarios that it names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cl_clipfit.config.command import RunConfig
from cl_clipfit.config.parsing import Assigned, Spec, parse_settings, parse_spec


@dataclass(frozen=True)
class Command:
    """What a user asked for.

    Attributes:
        config: all settings.
        scenario: the stream, with the settings in its name.
        strategies: the methods, each once, with the settings in their names.
        assigned: what `--set` gives, by name of strategy or scenario.
    """

    config: RunConfig
    scenario: Spec
    strategies: tuple[Spec, ...]
    assigned: Assigned

    def settings_of(self, name: str) -> dict[str, Any]:
        """Return what `--set` says of a strategy or scenario."""
        return dict(self.assigned.get(name, {}))


def parse_command(config: RunConfig, strategies: Sequence[str] | None = None) -> Command:
    """Parse the names and assignments of a command.

    Args:
        config: all settings.
        strategies: methods in place of those of `config`.

    Raises:
        UserError: a name or an assignment of another form.
    """
    labels = config.strategy if strategies is None else strategies
    return Command(
        config,
        parse_spec(config.scenario, "--scenario"),
        tuple(parse_spec(label) for label in dict.fromkeys(labels)),
        parse_settings(config.set),
    )
