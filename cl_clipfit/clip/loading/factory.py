"""Build a `CLIPClassifier` from a model name: `mini`, `ARCH:TAG`, `ARCH[:TAG]:FILE`, ..."""

import contextlib
import copy
import functools
import hashlib
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cl_clipfit.clip.classifier import CLIPClassifier, ModelIdentity, Precision
from cl_clipfit.clip.loading.checkpoint import (
    explain_mismatch,
    interpolated,
    reading_checkpoints,
)
from cl_clipfit.clip.loading.hub import fetch_model, hub_reason, patient_hub
from cl_clipfit.clip.loading.names import (
    HUB,
    MINI,
    MINI_FOLDER,
    Weights,
    activation_doubt,
    is_own,
    parse_model,
    preprocessing_of,
    resolve_weights,
)
from cl_clipfit.clip.loading.own_models import (
    OWN,
    OwnModel,
    building,
    find_own_model,
    read_own_model,
)
from cl_clipfit.clip.loading.untrusted_weights import check_checkpoint
from cl_clipfit.clip.preprocess import Preprocess
from cl_clipfit.errors import UserError

RANDOM_SEED = 0  # for the weights of ARCH:random


@dataclass(frozen=True)
class _Source:
    """What a model is made of.

    Attributes:
        label: name to display.
        architecture: the name that open_clip builds it by.
        weights: file or tag.
        pretrained: name of the weights to display.
        preprocessing: of training; None to take that of the tag.
        doubts: warnings.
        config: of an architecture of one's own.
    """

    label: str
    architecture: str
    weights: Weights
    pretrained: str
    preprocessing: dict[str, Any] | None = None
    doubts: tuple[str, ...] = ()
    config: dict[str, Any] | None = None


def create_classifier(
    name: str = MINI, device: str | torch.device = "cpu", precision: Precision = "fp32"
) -> CLIPClassifier:
    """Load a model with its weights, tokenizer and preprocessing, ready to `add_classes`.

    Args:
        name: `mini`; `ARCH:TAG` with an open_clip tag, downloaded by open_clip; `ARCH:TAG:FILE`,
            the same from a file; `ARCH:FILE` with any checkpoint; `ARCH:random` for untrained
            weights; `CONFIG.json:FILE` or `local-dir:FOLDER` for an architecture of one's own;
            `hf-hub:ORG/REPO`.
        device: to put the model on.
        precision: of the towers; see `CLIPClassifier`.

    Raises:
        UserError: unknown architecture or tag, activation mismatch, a file that cannot be loaded,
            or weights that cannot be downloaded.
    """
    source = _resolve(name)
    clip, resized = _load(source)
    _check_finite(clip, source.weights.file or name)
    tokenizer = _tokenizer(source)
    identity = ModelIdentity(source.label, source.pretrained, hash_weights(clip))
    model = CLIPClassifier(clip, tokenizer, identity, precision)
    model.warnings = (*source.doubts, *resized)
    for text in model.warnings:
        warnings.warn(text, stacklevel=1)  # the command line silences it by the place, here
    return model.to(device)


def check_model(name: str) -> None:
    """Check a model's name and the files of its configuration without loading or downloading it.

    Raises:
        UserError: as `create_classifier`.
    """
    if not name.startswith(HUB):
        _resolve(name)


def architecture_of(name: str) -> dict[str, Any]:
    """Return the configuration of a model's architecture, in the form of open_clip.

    Raises:
        UserError: as `create_classifier`.
    """
    import open_clip

    source = _resolve(name)
    return copy.deepcopy(source.config or open_clip.get_model_config(source.architecture) or {})


def _resolve(name: str) -> _Source:
    import open_clip

    open_clip.add_model_config(MINI_FOLDER / "mini.json")
    architecture, pretrained = parse_model(name)
    if is_own(architecture):
        return _resolve_own(architecture, pretrained)
    weights = resolve_weights(architecture, pretrained)
    shown = weights.label if pretrained else "bundled"
    if not weights.file:
        return _Source(architecture, architecture, weights, shown)
    preprocessing = preprocessing_of(architecture, weights)
    check_checkpoint(Path(weights.file))
    doubt = activation_doubt(architecture, weights)
    doubts = (doubt,) if doubt else ()
    return _Source(architecture, architecture, weights, shown, preprocessing, doubts)


def _resolve_own(name: str, pretrained: str) -> _Source:
    if name.startswith(HUB):
        own = OwnModel(name, *fetch_model(name.removeprefix(HUB)))
    else:
        own = find_own_model(name, pretrained)
    check_checkpoint(own.weights)
    config, preprocessing = read_own_model(own)
    weights = Weights("", str(own.weights))
    shown = "hub" if name.startswith(HUB) else weights.label
    doubts = () if preprocessing else (
        f"{own.label}: {own.config.name} has no preprocess_cfg: images are preprocessed as for"
        " OpenAI's CLIP",
    )  # fmt: skip
    return _Source(own.label, OWN, weights, shown, preprocessing, doubts, config)


def _load(source: _Source) -> tuple[nn.Module, list[str]]:
    """Return the model, and a warning for every embedding of positions that was resized."""
    import open_clip

    weights = source.weights
    options: dict[str, Any] = {"pretrained": weights.tag or None}
    if weights.tag == "random":
        options = {"pretrained": None, "pretrained_text": False}
    if weights.file:
        file = str(Path(weights.file).absolute())  # open_clip prefers a tag of the same name
        options = {"pretrained": file, "force_preprocess_cfg": source.preprocessing}
    try:
        with torch.random.fork_rng(devices=[]), patient_hub(), _reader(weights) as read:
            torch.manual_seed(RANDOM_SEED)
            with building(source.config):
                clip = open_clip.create_model(source.architecture, **options)
        Preprocess.of(clip)  # a configuration of one's own may hold any image size
        return clip, interpolated(clip, read or {}, weights.label)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_load_message(source, error)) from error


def _check_finite(clip: nn.Module, source: str) -> None:
    """Refuse weights that make every feature NaN, whatever they come from."""
    values = {**clip.state_dict(), "exp(logit_scale)": clip.logit_scale.detach().exp()}  # type: ignore[operator]
    for name, value in values.items():
        # The extremes of values with NaN are NaN, and are found 15 times as fast as `isfinite`.
        if value.numel() and not torch.stack(value.aminmax()).isfinite().all():
            raise UserError(
                f"{source}: '{name}' has NaN or infinite values: use a checkpoint from before"
                " training diverged, or one that was not converted to fp16"
            )


def _reader(weights: Weights) -> AbstractContextManager[Any]:
    """Leave only what a tag names, which open_clip's own hash verifies, to open_clip's reader."""
    return contextlib.nullcontext() if weights.tag and not weights.file else reading_checkpoints()


def _load_message(source: _Source, error: Exception) -> str:
    import open_clip

    reason, architecture, weights = explain_mismatch(error), source.label, source.weights
    if weights.file:
        return f"cannot load {weights.file} as weights of {architecture}: {reason}"
    if weights.tag == "random":
        return f"cannot build {architecture}: {reason}"
    if "download" not in reason.lower():
        return f"cannot load weights '{weights.tag}' of {architecture}: {reason}"
    config = open_clip.get_pretrained_cfg(architecture, weights.tag)
    repository, _, file = config.get("hf_hub", "").rpartition("/")
    file = file or "open_clip_model.safetensors"
    origin = f"{file} of the Hugging Face repository {repository}"
    if not repository:
        file = Path(config.get("url", "")).name
        origin = config.get("url", "")
    return (
        f"cannot download weights '{weights.tag}' of {architecture} ({hub_reason(error)}). Fetch"
        f" {origin} on another machine, then run with"
        f" --model {architecture}:{weights.tag}:PATH_TO/{file}"
    )


@functools.cache
def _mini_tokenizer() -> Any:
    """Return the tokenizer of the mini CLIP, which takes longer to create than the model."""
    import open_clip

    return open_clip.get_tokenizer(MINI)


def _tokenizer(source: _Source) -> Any:
    import open_clip

    try:
        with patient_hub(), building(source.config):
            if source.architecture == MINI:
                return _mini_tokenizer()
            return open_clip.get_tokenizer(source.architecture)
    except ImportError as error:
        raise UserError(
            f"the tokenizer of {source.label} needs a package that is not installed:"
            f" pip install 'cl_clipfit[siglip]' ({error})"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"cannot get the tokenizer of {source.label} ({hub_reason(error)}): {reason}"
        ) from error


def hash_weights(module: nn.Module) -> str:
    """Return the SHA-256 over names, types, shapes and values of a module's state, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
