"""Checks before a command trains: output folder, plug-ins, and the run that `--resume` names."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cl_clipfit.config.command import read_config
from cl_clipfit.errors import UserError, is_file
from cl_clipfit.storage.run_folder import CONFIG, MERGED_FROM, RunFolder, changed_settings


def check_output(output: Path) -> None:
    """Refuse an output folder that cannot be created or written, before any data is read.

    Raises:
        UserError: it is below a file, or in a folder that cannot be written.
    """
    parent = output.absolute()
    try:
        while not parent.exists():
            parent = parent.parent
    except (OSError, ValueError) as error:  # the name is too long, or not a file name at all
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {output}: {reason}") from error
    if not parent.is_dir():
        raise UserError(f"cannot write {output}: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {output}: no permission to write {parent}")


def check_plugins(files: Iterable[Path | str], named: Iterable[Path], where: Path) -> None:
    """Refuse plug-ins that a file names but the command line does not, because they run code.

    Args:
        files: the plug-ins that the file names.
        named: the plug-ins of the command line.
        where: the file.

    Raises:
        UserError: the command line does not name one of them.
    """
    trusted = {file.resolve() for file in named}
    for file in files:
        if Path(file).resolve() not in trusted:
            raise UserError(
                f"{where} names the plug-in {file}, which would run code: read it, and if you"
                f" trust it add --plugin {file}"
            )


def check_plugins_of_run(folder: Path, named: Iterable[Path]) -> None:
    """Refuse to open a run with plug-ins that the command does not name; see `check_plugins`."""
    config = folder / CONFIG
    if is_file(config):
        check_plugins(read_config(config, (MERGED_FROM,)).get("plugin", ()), named, config)


def resumed_settings(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the run in a folder, overridden by those of the command.

    Raises:
        UserError: it is not a run folder.
    """
    if not is_file(folder / CONFIG):
        raise UserError(f"--resume {folder}: not a run folder: it has no {CONFIG}")
    settings = read_config(folder / CONFIG)
    if not {"strategy", "seed"} <= {*settings}:
        raise UserError(f"--resume {folder}: its {CONFIG} is not one that a run writes")
    options = {text.partition("=")[0] for text in given.get("set", ())}
    kept = [text for text in settings.get("set", ()) if text.partition("=")[0] not in options]
    both = [*kept, *given.get("set", ())]
    return {**settings, **given, "set": both, "output": folder.resolve().parent}


def resumed_folder(
    folder: RunFolder, place: Path, config: dict[str, Any], force: bool
) -> RunFolder:
    """Return the folder to resume in.

    Args:
        folder: the folder that belongs to the command's settings.
        place: the folder that the user wants to resume.
        config: what `config.yaml` would hold.
        force: resume even if settings that change results differ.

    Raises:
        UserError: settings differ, and `force` is False.
    """
    if folder.path.name != place.resolve().name:
        before = read_config(place / CONFIG)
        folder.changed = changed_settings(before, config) or [
            f"data, weights, code or version (its folder was named {folder.path.name}), or what"
            " --force-resume changed before"
        ]
        if not force:
            raise UserError(
                f"--resume {place}: not the run's settings: {'; '.join(folder.changed)}. Repeat it"
                " as it was, or add --force-resume"
            )
    folder.path = place.resolve()
    return folder
