"""Shell completion: written by cyclopts, for the command `cl-clipfit`."""

from pathlib import Path
from typing import Literal

from cyclopts import App
from cyclopts.completion.detect import ShellDetectionError, detect_shell
from cyclopts.completion.install import add_to_rc_file, get_default_completion_path

from cl_clipfit.errors import UserError

COMMAND = "cl-clipfit"  # what pip installs: a shell completes the words after a command's name
Shell = Literal["bash", "zsh", "fish"]


def install(app: App, shell: Shell | None = None) -> list[str]:
    """Write the completions of a shell, and have it read them; return what was done.

    Args:
        app: the command line.
        shell: default the one that runs this process.

    Raises:
        UserError: the shell is unknown, or a file cannot be written.
    """
    try:
        used = shell or detect_shell()
    except ShellDetectionError:
        used = None
    if used not in ("bash", "zsh", "fish"):
        raise UserError("--install-completion: which shell? give bash, zsh or fish after it")
    try:
        script = app.generate_completion(prog_name=COMMAND, shell=used)
        file = get_default_completion_path(used, COMMAND)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(script, encoding="utf-8")
        lines = [f"wrote {file}"]
        if used != "fish" and add_to_rc_file(file, COMMAND, used):
            lines.append(f"added a line to {Path.home() / f'.{used}rc'} that reads it")
    except OSError as error:
        raise UserError(
            f"--install-completion: cannot write {error.filename}: {error.strerror}"
        ) from error
    return [*lines, f"start a new {used}: it completes what follows {COMMAND}"]
