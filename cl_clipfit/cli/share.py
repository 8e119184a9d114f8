"""`run.py export` and `run.py extend`: what comes after a finished run."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cl_clipfit.cli.arguments import Device, Plugins, RunPath, consoles
from cl_clipfit.commands.resume import check_plugins_of_run


def export(
    run: RunPath,
    out: Annotated[
        Path | None,
        Parameter(help="FILE.safetensors, FILE.pt, FILE.onnx, or a folder; default by the run."),
    ] = None,
    /,
    *,
    to: Annotated[
        str | None, Parameter(help="open_clip, onnx or hf-folder; default by the name's ending.")
    ] = None,
    force: Annotated[bool, Parameter(help="Replace what exists.")] = False,
    plugin: Plugins = None,
) -> None:
    """Write a finished run for open_clip, ONNX runtimes or a model hub, and check it."""
    check_plugins_of_run(run, plugin or [])
    from cl_clipfit.commands.share import export_run

    export_run(run, *consoles(), to=to, place=out, force=force)


def extend(
    run: RunPath,
    /,
    *,
    data_dir: Annotated[
        list[Path], Parameter(help="Folders of images of new classes, a task each.")
    ],
    prompts: Annotated[
        Path | None, Parameter(help="CSV file with lines class,prompt, for new classes.")
    ] = None,
    device: Device = None,
    fresh: Annotated[bool, Parameter(help="Repeat an extension that is complete.")] = False,
    plugin: Plugins = None,
) -> None:
    """Learn further tasks on top of a finished run; the result is a run of its own."""
    check_plugins_of_run(run, plugin or [])
    from cl_clipfit.commands.extend import extend_run

    extend_run(run, data_dir, *consoles(), prompts=prompts, device=device, fresh=fresh)
