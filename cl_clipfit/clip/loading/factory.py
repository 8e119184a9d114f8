"""Build a `CLIPClassifier` from a model name: `mini`, `ARCH:TAG`, `ARCH[:TAG]:FILE`, ..."""

import contextlib
import hashlib
import logging
import os
import socket
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
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
from cl_clipfit.clip.loading.names import (
    MINI,
    MINI_FOLDER,
    SCHEMAS,
    Weights,
    activation_doubt,
    parse_model,
    preprocessing_of,
    resolve_weights,
)
from cl_clipfit.clip.loading.untrusted_config import check_config
from cl_clipfit.clip.loading.untrusted_weights import check_checkpoint, check_folder
from cl_clipfit.errors import UserError

RANDOM_SEED = 0  # for the weights of ARCH:random


def create_classifier(
    name: str = MINI, device: str | torch.device = "cpu", precision: Precision = "fp32"
) -> CLIPClassifier:
    """Load a model with its weights, tokenizer and preprocessing, ready to `add_classes`.

    Args:
        name: `mini`; `ARCH:TAG` with an open_clip tag, downloaded by open_clip; `ARCH:TAG:FILE`,
            the same from a file; `ARCH:FILE` with any checkpoint; `ARCH:random` for untrained
            weights; `hf-hub:ORG/REPO`; `local-dir:FOLDER`.
        device: to put the model on.
        precision: of the towers; see `CLIPClassifier`.

    Raises:
        UserError: unknown architecture or tag, activation mismatch, a file that cannot be loaded,
            or weights that cannot be downloaded.
    """
    architecture, pretrained = parse_model(name)
    weights = check_model(name)
    local = architecture.startswith("local-dir:")
    label = Path(architecture).name if local else architecture  # the path of a folder is private
    clip, doubts = _load(architecture, weights)
    _check_finite(clip, weights.file or name)
    tokenizer = _tokenizer(architecture)
    bundled = architecture == MINI and not pretrained
    identity = ModelIdentity(label, "bundled" if bundled else weights.label, hash_weights(clip))
    model = CLIPClassifier(clip, tokenizer, identity, precision)
    model.warnings = tuple(doubts)
    for text in doubts:
        warnings.warn(text, stacklevel=1)  # the command line silences it by the place, here
    return model.to(device)


def check_model(name: str) -> Weights:
    """Check a model name without loading anything.

    Raises:
        UserError: as `resolve_weights`.
    """
    import open_clip

    open_clip.add_model_config(MINI_FOLDER / "mini.json")
    architecture, pretrained = parse_model(name)
    if architecture.startswith(SCHEMAS):
        return Weights("")
    return resolve_weights(architecture, pretrained)


@contextlib.contextmanager
def _patient_hub() -> Iterator[None]:
    """Use the hub's cache immediately if there is no network, and silence its logging.

    Telemetry is disabled unless HF_HUB_DISABLE_TELEMETRY=0 is set.

    The hub client retries for a minute before it gives up. A host name that cannot be resolved
    needs no retry; behind a proxy it need not be resolvable, so the client is not changed then.
    """
    from huggingface_hub import constants

    offline, silenced = constants.HF_HUB_OFFLINE, logging.root.manager.disable
    telemetry = constants.HF_HUB_DISABLE_TELEMETRY
    constants.HF_HUB_DISABLE_TELEMETRY = telemetry or "HF_HUB_DISABLE_TELEMETRY" not in os.environ
    host = urllib.parse.urlsplit(constants.ENDPOINT).hostname
    if not urllib.request.getproxies():
        try:
            socket.getaddrinfo(host, None)
        except OSError:
            constants.HF_HUB_OFFLINE = True
    logging.disable(logging.CRITICAL)  # open_clip logs errors that are reported here
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        constants.HF_HUB_DISABLE_TELEMETRY = telemetry
        logging.disable(silenced)


def _load(architecture: str, weights: Weights) -> tuple[nn.Module, list[str]]:
    """Return the model, and warnings about what its features depend on."""
    import open_clip

    options: dict[str, Any] = {"pretrained": weights.tag or None}
    if weights.tag == "random":
        options = {"pretrained": None, "pretrained_text": False}
    if weights.file:
        preprocessing = preprocessing_of(architecture, weights)
        check_checkpoint(Path(weights.file))
        file = str(Path(weights.file).absolute())  # open_clip prefers a tag of the same name
        options = {"pretrained": file, "force_preprocess_cfg": preprocessing}
    try:
        with torch.random.fork_rng(devices=[]), _patient_hub(), _reader(weights) as read:
            torch.manual_seed(RANDOM_SEED)
            _check_untrusted(architecture)
            clip = open_clip.create_model(architecture, **options)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_load_message(architecture, weights, error)) from error
    doubts = interpolated(clip, read or {}, weights.label)
    if weights.file and (doubt := activation_doubt(architecture, weights)):
        doubts.append(doubt)
    return clip, doubts


def _check_finite(clip: nn.Module, source: str) -> None:
    """Refuse weights that make every feature NaN, whatever they come from."""
    values = {**clip.state_dict(), "exp(logit_scale)": clip.logit_scale.detach().exp()}  # type: ignore[operator]
    for name, value in values.items():
        # The extremes of values with NaN are NaN, and are found 15 times as fast as `isfinite`.
        if value.numel() and not torch.stack(value.aminmax()).isfinite().all():
            raise UserError(
                f"{source}: '{name}' has NaN or infinite values, so that no feature would be a"
                " number: take weights from before training diverged, or not converted to fp16"
            )


def _reader(weights: Weights) -> AbstractContextManager[Any]:
    """Leave only what a tag names, which open_clip's own hash verifies, to open_clip's reader."""
    return contextlib.nullcontext() if weights.tag and not weights.file else reading_checkpoints()


def _check_untrusted(architecture: str) -> None:
    """Check the files of a folder, or of the hub, before open_clip reads them."""
    from open_clip.pretrained import download_pretrained_from_hf

    scheme, _, name = architecture.partition(":")
    if scheme == "local-dir":
        check_folder(Path(name))
    if scheme == "hf-hub":
        config = download_pretrained_from_hf(name, filename="open_clip_config.json")
        weights = Path(download_pretrained_from_hf(name))
        check_checkpoint(weights)
        check_config(Path(config), weights.stat().st_size)


def _load_message(architecture: str, weights: Weights, error: Exception) -> str:
    import open_clip

    reason = explain_mismatch(error)
    if weights.file:
        return f"cannot load {weights.file} as weights of {architecture}: {reason}"
    if architecture.startswith("local-dir:") or weights.tag == "random":
        return f"cannot build {architecture}: {reason}"
    if architecture.startswith("hf-hub:"):
        repository = architecture.removeprefix("hf-hub:")
        return (
            f"cannot get {architecture} (no network, or no such model): fetch the files of the"
            f" Hugging Face repository {repository} into a folder, then --model local-dir:FOLDER"
        )
    if "download" not in reason.lower():
        return f"cannot load weights '{weights.tag}' of {architecture}: {reason}"
    config = open_clip.get_pretrained_cfg(architecture, weights.tag)
    repository, _, file = config.get("hf_hub", "").rpartition("/")
    file = file or "open_clip_model.safetensors"
    source = f"{file} of the Hugging Face repository {repository}"
    if not repository:
        file = Path(config.get("url", "")).name
        source = config.get("url", "")
    return (
        f"cannot download weights '{weights.tag}' of {architecture} (no network?). Fetch {source}"
        f" on another machine, then run with --model {architecture}:{weights.tag}:PATH_TO/{file}"
    )


def _tokenizer(architecture: str) -> Any:
    import open_clip

    try:
        with _patient_hub():
            return open_clip.get_tokenizer(architecture)
    except ImportError as error:
        raise UserError(
            f"the tokenizer of {architecture} needs a package that is not installed:"
            f" pip install 'cl_clipfit[siglip]' ({error})"
        ) from error
    except Exception as error:
        if architecture.startswith(SCHEMAS):
            raise UserError(_load_message(architecture, Weights(""), error)) from error
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"cannot get the tokenizer of {architecture} from the Hugging Face hub (no network?):"
            f" {reason}"
        ) from error


def hash_weights(module: nn.Module) -> str:
    """Return the SHA-256 over names, types, shapes and values of a module's state, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
