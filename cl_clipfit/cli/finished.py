"""The commands on finished runs: `run.py merge`, `landscape`, `verify`, ..., `extend`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from cl_clipfit.cli.arguments import (
    Device,
    Method,
    Plugins,
    RunPath,
    Settings,
    consoles,
    folders,
)
from cl_clipfit.commands.resume import check_plugins_of_run
from cl_clipfit.config.merge_settings import ModeSettings
from cl_clipfit.errors import UserError, is_file

Form = Literal["table", "markdown", "latex", "csv"]


def merge(
    run: RunPath,
    /,
    *,
    method: Method,
    set: Annotated[
        list[str] | None, Parameter(help="mergetune.key=value: settings of the method mergetune.")
    ] = None,
    settings: Settings = None,
    device: Device = None,
    fresh: Annotated[bool, Parameter(help="Repeat a merge that is complete.")] = False,
    plugin: Plugins = None,
) -> None:
    """Merge a finished run after every task; the result is a run of its own."""
    check_plugins_of_run(run, plugin or [])
    from cl_clipfit.commands.merge import merge_run

    merge_run(
        run, method, settings or ModeSettings(), set or [], *consoles(), device=device, fresh=fresh
    )


def landscape(
    run: RunPath,
    /,
    *,
    task: Annotated[int | None, Parameter(help="After which task; default the last.")] = None,
    images: Annotated[
        int,
        Parameter(help="At most this many training images, and test images of the classes seen."),
    ] = 512,
    plane: Annotated[
        bool,
        Parameter(negative="--no-plane", help="Measure the plane through three solutions too."),
    ] = True,
    device: Device = None,
    plugin: Plugins = None,
) -> None:
    """Measure loss and accuracy between the solutions of a run, and zero-shot CLIP."""
    check_plugins_of_run(run, plugin or [])
    from cl_clipfit.commands.landscape import Request, landscape_command

    landscape_command(Request(run, task, images, plane, device), *consoles())


def verify(
    run: RunPath,
    /,
    *,
    replay: Annotated[bool, Parameter(help="Train one task again, and compare.")] = False,
    plugin: Plugins = None,
) -> None:
    """Check that a finished run is as written, and that its numbers follow from its tables."""
    if replay:
        check_plugins_of_run(run, plugin or [])
    from cl_clipfit.commands.verify import verify_run

    verify_run(run, *consoles(), replay=replay)


def predict(
    run: RunPath,
    /,
    *images: Annotated[Path, Parameter(help="Image files, or folders with images at any depth.")],
    top: Annotated[int, Parameter(help="Classes per image.")] = 5,
    unknown: Annotated[
        bool, Parameter(help="Leave images open that fit no class the run has seen.")
    ] = False,
    output: Annotated[Path | None, Parameter(help="CSV file to write.")] = None,
    device: Device = None,
    plugin: Plugins = None,
) -> None:
    """Classify new images with a finished run; the CSV of a folder goes to standard output."""
    check_plugins_of_run(run, plugin or [])
    if not images:
        raise UserError("predict: name at least one image file or folder")
    for image in images:
        if not is_file(image, or_folder=True):  # before seconds are spent on importing PyTorch
            raise UserError(f"{image}: there is no such file or folder")
    if top < 1:
        raise UserError(f"--top {top}: expected at least 1")
    from cl_clipfit.commands.predict import predict as predict_images

    predict_images(run, images, *consoles(), top=top, unknown=unknown, output=output, device=device)


def compare(
    *runs: Annotated[Path, Parameter(help="Folders of runs, or folders that hold some.")],
    markdown: Annotated[bool, Parameter(help="Print the tables in Markdown.")] = False,
    latex: Annotated[bool, Parameter(help="Print them for LaTeX's package booktabs.")] = False,
    csv: Annotated[bool, Parameter(help="Print a line per run, with all its metrics.")] = False,
    mixed: Annotated[
        bool, Parameter(help="One table for runs of different streams, orders or weights.")
    ] = False,
    against: Annotated[
        str | None,
        Parameter(help="Test the differences from this method; default the best on average."),
    ] = None,
    label: Annotated[
        list[str] | None,
        Parameter(help='LABEL=NAME: what to call a method, as "full=Fine-tuning".'),
    ] = None,
    metric: Annotated[
        list[str] | None,
        Parameter(help="Metrics of the kept predictions: names of list metrics, or Python files."),
    ] = None,
    std: Annotated[bool, Parameter(help="Show standard deviations beside intervals.")] = False,
    output: Annotated[Path | None, Parameter(help="Folder for figures and CSV files.")] = None,
) -> None:
    """Compare finished runs: tables, curves and paired tests, on common seeds."""
    forms: dict[Form, bool] = {"markdown": markdown, "latex": latex, "csv": csv}
    chosen = [form for form, asked in forms.items() if asked]
    if len(chosen) > 1:
        raise UserError(f"--{chosen[0]} and --{chosen[1]}: choose one")
    from cl_clipfit.commands.compare import compare as compare_runs

    compare_runs(
        folders(runs), *consoles(), form=chosen[0] if chosen else "table", mixed=mixed,
        against=against, names=label or [], metrics=metric or [], std=std, output=output,
    )  # fmt: skip


def report(
    *runs: Annotated[Path, Parameter(help="Folders of runs, or folders that hold some.")],
    output: Annotated[
        Path | None,
        Parameter(help="File to write; default report.html in the folder that is named."),
    ] = None,
    figures: Annotated[
        Path | None, Parameter(help="Folder for every figure of the page as SVG and PNG.")
    ] = None,
) -> None:
    """Write a page that shows finished runs: curves, matrices, classes, examples, commands."""
    from cl_clipfit.commands.report import report as report_runs

    report_runs(folders(runs), *consoles(), output=output, figures=figures)


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
    from cl_clipfit.commands.export import export_run

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
