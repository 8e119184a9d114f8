"""`run.py export`: a finished run as a file or folder that other libraries read."""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import open_clip
import torch
from rich.console import Console
from torch import Tensor

from cl_clipfit.bank.store import DeltaBank
from cl_clipfit.clip import Preprocess
from cl_clipfit.clip.checkpoint_file import write_checkpoint
from cl_clipfit.clip.loading.factory import architecture_of
from cl_clipfit.clip.loading.licences import licence_of
from cl_clipfit.clip.loading.own_models import CONFIG, OWN, building
from cl_clipfit.commands.bank import file_size, say
from cl_clipfit.errors import UserError, is_file, nearest
from cl_clipfit.experiment.load import LoadedRun, load_run
from cl_clipfit.methods.adapter import AdapterStrategy
from cl_clipfit.report.display import ConsoleDisplay
from cl_clipfit.report.model_card import model_card
from cl_clipfit.storage.files import writing
from cl_clipfit.storage.run_folder import BANK
from cl_clipfit.training.strategy import CLIPStrategy

Form = Literal["open_clip", "onnx", "hf-folder"]
WEIGHTS = "open_clip_model.safetensors"
CARD = "README.md"
TOLERANCE = 1e-5  # between cosine similarities of the run and of what was written, at most
_SAMPLE = 4  # images that both score
_SUFFIXES: dict[str, Form] = {".safetensors": "open_clip", ".pt": "open_clip", ".onnx": "onnx"}


def export_run(
    path: Path, out: Console, err: Console, *, to: str | None = None, place: Path | None = None,
    force: bool = False,
) -> Path:  # fmt: skip
    """Write what a finished run learned in a form that another library reads, and check it there.

    Args:
        path: folder of the run; its data are not needed.
        out: where to print.
        err: where progress goes.
        to: one of `Form`; default: by the ending of `place`, a folder without one.
        place: file or folder to write; default: named after the run, in the current folder.
        force: replace a file, or what an earlier export wrote into a folder.

    Returns:
        what was written.

    Raises:
        UserError: the form cannot hold what the run learned, or the place cannot be written.
    """
    form = _form(to, place)
    place = place or Path(f"{path.resolve().name}{_endings(form)[0]}")
    _check_place(form, place, force)
    if form == "onnx":
        from cl_clipfit.clip.onnx_file import check_onnx

        check_onnx()
    run = load_run(path, ConsoleDisplay(err), device="cpu")
    run.strategy.model.precision = "fp32"
    head = _text_head(run, form)
    write = {"open_clip": _write_checkpoint, "onnx": _write_onnx, "hf-folder": _write_folder}[form]
    with _draft(place, form) as draft:
        gap = write(run, draft, head) / float(run.strategy.model.logit_scale)
        if not gap <= TOLERANCE:  # NaN too
            raise UserError(
                f"{place}: similarities of what was written differ from the run's by {gap:.1e},"
                f" more than {TOLERANCE:g}: it was not written"
            )
    size = sum(file.stat().st_size for file in ([*place.iterdir()] if place.is_dir() else [place]))
    say(out, f"written: {place} ({file_size(size)}), {len(run.classes)} classes")
    say(
        out,
        f"checked: loaded again, similarities of {_SAMPLE} images to all classes differ by at most"
        f" {gap:.1g}",
    )
    return place


def _form(to: str | None, place: Path | None) -> Form:
    if to is not None:
        if to not in get_args(Form):
            raise UserError(f"--to {to}: there is no such form. {nearest(to, get_args(Form))}")
        return to  # type: ignore[return-value]
    if place is None:
        raise UserError(f"export: name a file or folder, or --to {', '.join(get_args(Form))}")
    form = _SUFFIXES.get(place.suffix.lower())
    if form is None and place.suffix and not place.is_dir():
        raise UserError(f"{place}: the name must end in {', '.join(_SUFFIXES)}, or be a folder")
    return form or "hf-folder"


def _endings(form: Form) -> list[str]:
    return [ending for ending, name in _SUFFIXES.items() if name == form] or [""]


def _check_place(form: Form, place: Path, force: bool) -> None:
    if form != "hf-folder":
        if place.suffix.lower() not in _endings(form):
            raise UserError(f"{place}: for {form} the name must end in {_endings(form)[0]}")
        if place.is_dir():
            raise UserError(f"{place} is a folder: name a file")
        if is_file(place) and not force:
            raise UserError(f"{place} exists: --force replaces it")
        return
    if is_file(place):
        raise UserError(f"{place} is a file: name a folder")
    if place.is_dir() and any(place.iterdir()):
        if not is_file(place / CONFIG) or not is_file(place / WEIGHTS):
            raise UserError(f"{place} holds other files: name a new folder")
        if not force:
            raise UserError(f"{place} exists: --force replaces it")


@contextlib.contextmanager
def _draft(place: Path, form: Form) -> Iterator[Path]:
    """Yield where to write; it takes its place only if the `with` block succeeds."""
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=place.parent) as folder:
            draft = Path(folder) / place.name  # with the ending that libraries look at
            draft = draft.with_suffix(place.suffix.lower()) if place.suffix else draft
            if form == "hf-folder":
                draft.mkdir()
            yield draft
            if form == "hf-folder":
                place.mkdir(exist_ok=True)
                for file in sorted(draft.iterdir()):
                    file.replace(place / file.name)
            else:
                draft.replace(place)


class _Head:
    """Text features of the classes, and what happens to image features before they meet them."""

    def __init__(self, text: Tensor, adapt: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        self.text, self.adapt = text, adapt


@torch.no_grad()
def _text_head(run: LoadedRun, form: Form) -> _Head:
    """Return the text head of a run.

    Raises:
        UserError: it classifies in another way than the form can hold.
    """
    strategy, model, what = run.strategy, run.strategy.model, type(run.strategy)
    label, scores = run.result["label"], what.scores
    selected = (
        DeltaBank.open(run.path / BANK).index["selection"] if (run.path / BANK).is_dir() else {}
    )
    if any(".adapter." in name for name in selected):
        raise UserError(f"{run.path}: {label} runs modules within the blocks of CLIP, which no"
                        " other library knows: it cannot be exported")  # fmt: skip
    adapted = isinstance(strategy, AdapterStrategy) and scores is AdapterStrategy.scores
    if scores is not CLIPStrategy.scores and not adapted:
        raise UserError(f"{run.path}: {label} does not classify by image and text features alone:"
                        " it cannot be exported")  # fmt: skip
    if form != "onnx":
        others = [name for name in selected if not name.startswith("clip.")]
        if others or adapted or model.context is not None:
            raise UserError(
                f"{run.path}: {label} trained '{(others or ['what is'])[0]}', which is not part of"
                " an open_clip model: export it with --to onnx"
            )
    if isinstance(strategy, AdapterStrategy):
        return _Head(model.zero_shot_text_features[list(run.classes)], strategy.adapt)
    return _Head(model.text_features(list(run.classes)))


def _about(run: LoadedRun) -> dict[str, Any]:
    """Return what travels with the weights: classes, prompts and preprocessing."""
    templates = run.result["templates"]
    if not isinstance(templates[0], str):
        templates = [templates[label] for label in run.classes]
    return {
        "class_names": run.class_names,
        "templates": templates,
        "preprocessing": asdict(run.strategy.model.preprocess),
        "base_model": run.result["model"],
        "strategy": run.result["label"],
        "licence": licence_of(run.stream.model),
    }


def _images(run: LoadedRun) -> Tensor:
    """Return a few images of noise, uint8 (N, 3, H, W)."""
    draws = torch.Generator().manual_seed(0)
    size = run.strategy.model.preprocess.size
    return torch.randint(0, 256, (_SAMPLE, 3, *size), dtype=torch.uint8, generator=draws)


def _scores(run: LoadedRun) -> Tensor:
    return run.strategy.score_all(_images(run))[:, list(run.classes)]


@torch.no_grad()
def _loaded_gap(run: LoadedRun, about: dict[str, Any], clip: Any, tokenizer: Any) -> float:
    """Return the largest difference of logits between the run and a model of open_clip."""
    model, of_class, text = run.strategy.model, about["templates"], []
    for index, name in enumerate(about["class_names"]):
        group = of_class if isinstance(of_class[0], str) else of_class[index]
        features = clip.encode_text(
            tokenizer([t.replace("{}", name) for t in group]), normalize=True
        )
        text.append(torch.nn.functional.normalize(features.mean(0), dim=-1))
    image = clip.encode_image(model.preprocess(_images(run)), normalize=True)
    logits = clip.logit_scale.exp() * image @ torch.stack(text).T
    if getattr(clip, "logit_bias", None) is not None:
        logits = logits + clip.logit_bias
    return float((logits - _scores(run)).abs().max())


def _write_checkpoint(run: LoadedRun, file: Path, _: _Head) -> float:
    """Write weights for `open_clip.create_model(ARCH, pretrained=FILE)`."""
    about = _about(run)
    write_checkpoint(file, run.strategy.model.clip, about)
    with building(architecture_of(run.stream.model)):
        clip = open_clip.create_model(OWN, pretrained=str(file)).eval()
    return _loaded_gap(run, about, clip, run.strategy.model.tokenizer)


def _write_onnx(run: LoadedRun, file: Path, head: _Head) -> float:
    """Write preprocessed images to logits as one graph."""
    from cl_clipfit.clip.onnx_file import onnx_logits, write_onnx

    model = run.strategy.model
    write_onnx(file, model, head.text, head.adapt, _about(run))
    return float((onnx_logits(file, model.preprocess(_images(run))) - _scores(run)).abs().max())


def _write_folder(run: LoadedRun, folder: Path, _: _Head) -> float:
    """Write the folder of a hub: configuration, weights, model card, and a tokenizer's own files.

    `open_clip.create_model_from_pretrained("local-dir:FOLDER")` reads it.
    """
    about, model = _about(run), run.strategy.model
    preprocessing = {k: v for k, v in about["preprocessing"].items() if k != "size"}
    architecture = architecture_of(run.stream.model)
    words = architecture.get("text_cfg", {})
    if Path(words.get("hf_tokenizer_name") or "").is_absolute():  # of a folder on this machine
        words["hf_tokenizer_name"] = "."
    config = {
        "model_cfg": architecture,
        "preprocess_cfg": preprocessing,
        "cl_clipfit": {k: about[k] for k in ("class_names", "templates", "base_model", "strategy")},
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False), "utf-8")
    write_checkpoint(folder / WEIGHTS, model.clip, about)
    if hasattr(model.tokenizer, "save_pretrained"):  # of transformers
        model.tokenizer.save_pretrained(str(folder))
    usage = _USAGE.format(names=about["class_names"][:3])
    (folder / CARD).write_text(
        model_card(
            run.result, title=run.path.name, model=run.stream.model, licence=about["licence"],
            data_licence=str(run.stream.data.about.get("LICENCE", "")), usage=usage,
        ), "utf-8",
    )  # fmt: skip
    clip, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    if Preprocess.of(clip) != model.preprocess:
        raise UserError(f"{run.path}: open_clip cannot express how this model preprocesses images")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    return _loaded_gap(run, about, clip.eval(), tokenizer)


_USAGE = """
import json
import open_clip

model, preprocess = open_clip.create_model_from_pretrained("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")
about = json.load(open("FOLDER/open_clip_config.json"))["cl_clipfit"]
about["class_names"]  # {names} ...
"""
