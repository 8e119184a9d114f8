"""`run.py bank export`: the merged model of a run as a checkpoint that open_clip reads."""

import contextlib
import copy
import shlex
from pathlib import Path
from typing import Any

import open_clip
import torch
from rich.console import Console

from cl_clipfit.clip import create_classifier
from cl_clipfit.clip.checkpoint_file import write_checkpoint
from cl_clipfit.clip.loading.factory import hash_weights
from cl_clipfit.clip.loading.names import HUB, LOCAL, is_own, parse_model
from cl_clipfit.commands.bank import file_size, open_bank, say
from cl_clipfit.config.merge_settings import (
    ALL,
    BY_NAME,
    CLOSED_FORM,
    MERGING,
    ModeSettings,
    check_settings,
)
from cl_clipfit.errors import UserError, is_file, nearest, program
from cl_clipfit.experiment.reopen import FinishedRun, open_run
from cl_clipfit.merging.methods import merged_values
from cl_clipfit.report.display import ConsoleDisplay
from cl_clipfit.storage.files import writing
from cl_clipfit.storage.manifest import adding, run_around

ENDINGS = (".safetensors", ".pt")
TOLERANCE = 1e-5  # between features of unit length
_SAMPLE = 8  # images and prompts that the file is tested on


def export_bank(
    path: Path, file: Path, out: Console, err: Console, *, mode: str = "latest",
    settings: ModeSettings | None = None, task: int | None = None, force: bool = False,
) -> None:  # fmt: skip
    """Write a run's merged model as an open_clip checkpoint, and check it by loading it.

    Args:
        path: a run folder.
        file: ends in .safetensors or .pt.
        out: where to print.
        err: where progress goes.
        mode: one of `CLOSED_FORM`.
        settings: of the mode.
        task: merge tasks 1 to this one; default all.
        force: replace the file if it exists.

    Raises:
        UserError: a name or setting is invalid, the bank holds parameters that are not open_clip's,
            or the file does not yield the same model; it is removed then.
    """
    settings = settings or ModeSettings()
    _check_request(file, mode, settings, force)
    bank = open_bank(path)
    if len(bank) and "head" in bank.index["tasks"][-1]["files"]:
        raise UserError(
            f"{path}: this run classifies with a closed-form head, which a checkpoint of the"
            " open_clip model cannot hold"
        )
    selected = bank.index["selection"]
    if others := [n for n in selected if not n.startswith("clip.") or ".adapter." in n]:
        raise UserError(
            f"{path}: this run trained '{others[0]}', which is not a parameter of the open_clip"
            " model: a checkpoint of that model cannot hold what was learned"
        )
    last = len(bank) if task is None else task
    if not 1 <= last <= len(bank):
        raise UserError(f"--task {last}: the bank {bank.folder} holds {len(bank)} tasks")
    run = open_run(path, ConsoleDisplay(err), device="cpu")
    model, method = run.strategy.model, BY_NAME[mode]
    values = [bank.lazy(t) for t in range(1, last + 1)]
    model.load_values(merged_values(method, values, run.strategy.zero_shot_point(), settings))
    around = run_around(file)
    with contextlib.nullcontext() if around is None else adding(around):
        checked = _write_checked(file, run, last)
    used = ", ".join(f"{k}={v}" for k, v in method.settings(settings).items())
    single = mode in ("latest", "wise") or last == 1
    tasks = f"task {last}" if single else f"tasks 1 to {last}"
    shown = f"{mode} ({used})" if used else mode
    say(out, f"written: {file} ({file_size(file.stat().st_size)}), mode {shown}, {tasks}")
    say(out, checked)
    say(out, f"use it: {_usage(file, run)}")


def _write_checked(file: Path, run: FinishedRun, task: int) -> str:
    """Write a file, check that it yields the same model, and return what was compared."""
    run.at_task(task)
    seen, templates = run.strategy.seen_classes, run.scenario.templates
    if not isinstance(templates[0], str):
        templates = tuple(templates[label] for label in seen)
    names = [run.scenario.class_names[label] for label in seen]
    about = {"class_names": names, "templates": list(templates)}
    # open_clip reads endings in lower case only.
    draft = file.with_name(f".{file.stem}.unchecked{file.suffix.lower()}")
    try:
        with writing(file):
            write_checkpoint(draft, run.strategy.model.clip, about)
            checked = _check_file(draft, run)
            draft.replace(file)  # only now: with --force the old file stays until this one is good
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
    return checked


def _check_request(file: Path, mode: str, settings: ModeSettings, force: bool) -> None:
    if file.suffix.lower() not in ENDINGS:
        raise UserError(f"{file}: the name must end in {' or '.join(ENDINGS)}")
    if mode not in CLOSED_FORM:
        if mode in MERGING:
            raise UserError(
                f"--mode {mode}: first {program()} merge RUN --method {mode}, then export that run"
            )
        why = "it chooses weights for each image" if mode in ALL else nearest(mode, CLOSED_FORM)
        raise UserError(f"--mode {mode}: cannot be exported. {why}")
    check_settings("--mode", [mode], settings)
    if file.is_dir():
        raise UserError(f"{file} is a folder: name a file")
    if is_file(file, or_folder=True) and not force:
        raise UserError(f"{file} exists: --force replaces it")


def _check_file(file: Path, run: FinishedRun) -> str:
    """Load the file through open_clip, compare it with the model, and say what was compared."""
    loaded = _load(file, run)
    if hash_weights(loaded) != hash_weights(run.strategy.model.clip):
        raise UserError(f"{file} does not read back as it was written: check the disk, try again")
    gap, count = _feature_gap(loaded, run)
    if not gap <= TOLERANCE:  # NaN too
        raise UserError(
            f"{file}: features of the loaded model differ by {gap:.1e}, more than {TOLERANCE:g}:"
            " see whether training diverged"
        )
    return (
        f"checked: loaded through open_clip, all {len(loaded.state_dict())} tensors are equal bit"
        f" for bit; features of {count} differ by at most {gap:.1g}, {TOLERANCE:g} is allowed"
    )


def _load(file: Path, run: FinishedRun) -> Any:
    """Return the model that open_clip makes of the file."""
    architecture = parse_model(run.prepared.stream.model)[0]
    try:
        if is_own(architecture):  # for these open_clip takes no other weights
            clip = copy.deepcopy(run.prepared.model.clip)
            open_clip.load_checkpoint(clip, str(file))
        else:
            clip = open_clip.create_model(architecture, pretrained=str(file))
    except Exception as error:  # whatever open_clip makes of the file
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file}: open_clip cannot load what was written: {reason}") from error
    return clip.eval()


@torch.no_grad()
def _feature_gap(loaded: Any, run: FinishedRun) -> tuple[float, str]:
    """Return the largest difference between features of both models, and what was encoded."""
    model, scenario = run.strategy.model, run.scenario
    model.precision = "fp32"  # as open_clip computes: only the content of the file is compared
    every = max(1, len(scenario.test.images) // _SAMPLE)
    images = scenario.test.images[::every][:_SAMPLE].to("cpu")
    names = scenario.class_names[:_SAMPLE]
    shared = isinstance(scenario.templates[0], str)
    prompts = model.tokenize(names, scenario.templates[: 1 if shared else len(names)])
    pixels = model.preprocess(images)
    pairs = (
        (model.image_features(images), loaded.encode_image(pixels, normalize=True)),
        (model.encode_prompts(prompts), loaded.encode_text(torch.cat(prompts), normalize=True)),
    )
    gap = max(float((ours - others).abs().max()) for ours, others in pairs)
    return gap, f"{len(images)} test images and {len(prompts)} prompts"


def _usage(file: Path, run: FinishedRun) -> str:
    """Return how to use the file, after checking that it yields the same classifier.

    Raises:
        UserError: it does not; the file itself is correct.
    """
    model = run.strategy.model
    architecture, pretrained = parse_model(run.prepared.stream.model)
    if architecture.startswith((HUB, LOCAL)):
        names = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
        name = names[ENDINGS.index(file.suffix.lower())]
        folder = "a copy of the model's folder, in place of its weights"
        return f"in {folder}, named {name}: {program()} --model local-dir:FOLDER"
    tag = pretrained.partition(":")[0]
    published = tag in open_clip.list_pretrained_tags_by_model(architecture)
    name = f"{architecture}:{tag}:{file}" if published else f"{architecture}:{file}"
    again = create_classifier(name)
    if again.preprocess != model.preprocess or hash_weights(again.clip) != hash_weights(model.clip):
        raise UserError(
            f"{file} is written and correct, but --model {name} preprocesses images differently:"
            " use it through open_clip, with this run's preprocessing"
        )
    return f"{program()} --model {shlex.quote(name)}"
