"""`run.py extend`: learn further tasks on top of a finished run."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

from rich.console import Console

from cl_clipfit.commands import summary
from cl_clipfit.commands.train import SAME_COMMAND, execute
from cl_clipfit.data.streams import Scenario
from cl_clipfit.errors import UserError, is_folder
from cl_clipfit.evaluation.frozen_features import FrozenImages
from cl_clipfit.experiment.continuation import Continuation
from cl_clipfit.experiment.identity import config_of
from cl_clipfit.experiment.prepare import prepare
from cl_clipfit.experiment.reopen import open_run, was_deterministic
from cl_clipfit.experiment.run import Run
from cl_clipfit.experiment.run_plan import RunPlan
from cl_clipfit.methods.prompt import PromptStrategy
from cl_clipfit.report.display import ConsoleDisplay, describe_stream, say
from cl_clipfit.report.results import Results
from cl_clipfit.runtime import processes
from cl_clipfit.runtime.determinism import deterministic
from cl_clipfit.runtime.signals import Stopped
from cl_clipfit.storage.lock import hold
from cl_clipfit.storage.result import Result
from cl_clipfit.storage.run_folder import REPORT


def extend_run(
    path: Path, folders: Sequence[Path], out: Console, err: Console, *,
    prompts: Path | None = None, device: str | None = None, fresh: bool = False,
) -> Path:  # fmt: skip
    """Learn the classes of folders, a task each, on top of a finished run.

    The result is a run of its own beside the finished one, which stays as it is: the run of the
    longer stream, as if it had been trained in one go.

    Args:
        path: folder of the finished run; its data must be where they were.
        folders: hold images in a folder per class, of new classes.
        out: where results go.
        err: where progress goes.
        prompts: CSV file with lines class,prompt, for the new classes.
        device: where to compute; default where the run was trained.
        fresh: repeat an extension that is complete.

    Returns:
        the folder of the extended run.

    Raises:
        UserError: there is no finished run, its method cannot be extended, or a folder cannot be
            read.
    """
    if not folders:
        raise UserError("extend: name a folder of images with --data-dir")
    for folder in folders:
        if not is_folder(folder):  # before the run is opened, which takes longer
            raise UserError(f"--data-dir {folder}: there is no such folder")
    if processes.world() > 1:
        raise UserError("extend: a run is extended by one process: start it without torchrun")
    path, display = path.resolve(), ConsoleDisplay(err)
    try:
        with deterministic(was_deterministic(path)):
            result, folder = _extend(path, folders, prompts, display, device, fresh)
    except Stopped as stopped:
        stopped.advice = SAME_COMMAND
        raise
    finally:
        display.stop()
    results = Results([Result(folder, result)])
    summary.write_report(folder / REPORT, [results], display)
    out.print(results.table())
    for line in (f"run folder: {folder}", *summary.named(folder / REPORT)):
        say(out, line)
    return folder


def _extend(
    path: Path,
    folders: Sequence[Path],
    prompts: Path | None,
    display: ConsoleDisplay,
    device: str | None,
    fresh: bool,
) -> tuple[dict[str, Any], Path]:
    """Return the result of the extended run, and its folder."""
    finished = open_run(path, display, device)
    earlier, config = Continuation(finished), finished.prepared.command.config
    if config.blurry is not None:
        raise UserError(
            f"{path}: this run mixed the images of all tasks (--blurry): no task can follow it"
        )
    names, templates = finished.scenario.class_names, finished.scenario.templates
    before = [templates if isinstance(t, str) else t for t, _ in zip(cycle(templates), names)]
    del finished  # its images
    config = config.model_copy(update={"then": [*(config.then or []), *folders]})
    if prompts is not None:
        config = config.model_copy(update={"prompts": [*(config.prompts or []), prompts]})
    prepared = prepare(config, display)
    plan = replace(prepared.plans[0], label=earlier.result["label"])
    folder = prepared.folder(plan)
    folder.check_links()
    with hold(folder.path):
        result = None if fresh else folder.finished_result()
        if result is None:
            scenario = prepared.scenario(plan.seed)
            _check_prompts(path, prompts, before, scenario, plan)
            display.note(describe_stream(scenario))
            stream = prepared.stream
            encoder = FrozenImages(prepared.model, stream.compute.device, display)
            run = Run(
                stream, plan, scenario, prepared.model, prepared.probes, folder, display, encoder
            )
            run.earlier = earlier
            settings = config_of(stream, plan, prepared.command)
            result = execute(run, settings, display, fresh)
        else:
            display.note(f"{folder.path.name}: complete, shown again (--fresh repeats it)")
    return result, folder.path


def _check_prompts(
    path: Path, prompts: Path | None, before: Sequence[Any], scenario: Scenario, plan: RunPlan
) -> None:
    """Refuse other prompts for what has been learned, and prompts where they are learned."""
    if prompts is None:
        return
    if issubclass(plan.cls, PromptStrategy):
        raise UserError(f"--prompts {prompts}: {plan.label} learns its prompts, leave the file out")
    for name, one, other in zip(scenario.class_names, before, scenario.templates, strict=False):
        if tuple(other) != one:
            raise UserError(
                f"--prompts {prompts}: '{name}' was learned by {path.name} with other prompts: name"
                " new classes alone"
            )
