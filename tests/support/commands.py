"""Shared pieces."""

from cl_clipfit.cli.app import app


def parse(*arguments: str) -> dict[str, object]:
    """Parse options as the command line does."""
    _, bound, _ = app.parse_args(list(arguments), exit_on_error=False, print_error=False)
    return bound.kwargs["config"].model_dump(exclude_unset=True)
