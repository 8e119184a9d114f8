"""`run.py export`: what leaves a finished run for others."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cl_clipfit.cli.arguments import Plugins, RunPath, consoles
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
