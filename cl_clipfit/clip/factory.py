"""Build a `CLIPClassifier` from a model name: `ARCH[:PRETRAINED]`, `mini`, or `ARCH:FILE`."""

import contextlib
import hashlib
import logging
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cl_clipfit.clip.classifier import CLIPClassifier, ModelIdentity
from cl_clipfit.errors import UserError, nearest

MINI = "mini"
MINI_FOLDER = Path(__file__).parent / "mini"
DEFAULT_MODEL = "ViT-B-16-quickgelu:openai"
RANDOM_SEED = 0  # of the weights of ARCH:random
_SCHEMAS = ("hf-hub:", "local-dir:")


def parse_model(name: str) -> tuple[str, str]:
    """Split `ARCH[:PRETRAINED]`; PRETRAINED is "" where none is given.

    Example:
        >>> parse_model("ViT-B-32:laion2b_s34b_b79k")
        ('ViT-B-32', 'laion2b_s34b_b79k')
        >>> parse_model("mini")
        ('mini', '')
        >>> parse_model("hf-hub:timm/ViT-B-16-SigLIP")
        ('hf-hub:timm/ViT-B-16-SigLIP', '')
    """
    if name.startswith(_SCHEMAS):
        return name, ""
    architecture, _, pretrained = name.partition(":")
    return architecture, pretrained


def create_classifier(name: str = MINI, device: str | torch.device = "cpu") -> CLIPClassifier:
    """Load a model with its weights, tokenizer and preprocessing, ready to `add_classes`.

    Args:
        name: `mini`; `ARCH:TAG` with an open_clip tag; `ARCH:FILE` with a checkpoint file;
            `ARCH:random` for untrained weights; `hf-hub:ORG/REPO`; `local-dir:FOLDER`.
        device: where the model goes.

    Raises:
        UserError: unknown architecture or tag, activation mismatch, a file that cannot be loaded,
            or weights that cannot be downloaded.
    """
    import open_clip

    open_clip.add_model_config(MINI_FOLDER / "mini.json")
    architecture, pretrained = parse_model(name)
    if not architecture.startswith(_SCHEMAS):
        pretrained = _check_names(architecture, pretrained)
    clip = _load(architecture, pretrained)
    tokenizer = _tokenizer(architecture)
    identity = ModelIdentity(
        architecture=architecture,
        pretrained=_label(architecture, pretrained),
        weights_sha256=hash_weights(clip),
    )
    return CLIPClassifier(clip, tokenizer, identity).to(device)


def _label(architecture: str, pretrained: str) -> str:
    if architecture == MINI and pretrained == str(MINI_FOLDER / "weights.safetensors"):
        return "bundled"
    # The name alone: the hash says which file it was, and folders are private.
    return Path(pretrained).name if Path(pretrained).is_file() else pretrained or "hub"


def _check_names(architecture: str, pretrained: str) -> str:
    """Return the tag or file to load, after every check that needs no weights."""
    import open_clip

    if architecture not in open_clip.list_models():
        known = nearest(architecture, open_clip.list_models())
        raise UserError(
            f"unknown model architecture '{architecture}'. {known}"
            " All are listed by: python run.py list models"
        )
    if architecture == MINI and not pretrained:
        return str(MINI_FOLDER / "weights.safetensors")
    if pretrained == "random" or Path(pretrained).is_file():
        return pretrained
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if not pretrained:
        raise UserError(
            f"model '{architecture}' needs weights: {architecture}:TAG, {architecture}:FILE or"
            f" {architecture}:random. Tags: {', '.join(tags) or 'none'}."
        )
    if not open_clip.get_pretrained_cfg(architecture, pretrained):
        _check_activation(architecture, pretrained)
        raise UserError(
            f"'{pretrained}' is neither a file nor a tag of weights for {architecture}."
            f" {nearest(pretrained, tags)}"
        )
    _check_activation(architecture, pretrained)
    return pretrained


def _check_activation(architecture: str, tag: str) -> None:
    """Refuse a GELU that differs from the one the weights were trained with.

    open_clip compares the same two settings, and only warns. It also warns of tags that do not say
    (roberta-ViT-B-32), whose weights were made with the architecture's own setting.
    """
    import open_clip

    wanted = open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu")
    built = bool((open_clip.get_model_config(architecture) or {}).get("quick_gelu", False))
    if wanted is None or wanted == built:
        return
    bare = architecture.removesuffix("-quickgelu")
    right = f"{bare}-quickgelu" if wanted else bare
    hint = f" Use --model {right}:{tag}" if right in open_clip.list_models() else ""
    raise UserError(
        f"weights '{tag}' were trained with {'QuickGELU' if wanted else 'plain GELU'}, which"
        f" {architecture} does not use (QuickGELU mismatch): every feature would be wrong.{hint}"
    )


@contextlib.contextmanager
def _patient_hub() -> Iterator[None]:
    """Take weights from the hub's cache at once where there is no network, without its chatter.

    The hub client retries for a minute before it gives up. A host name that cannot be resolved
    needs no retry; behind a proxy the resolver knows nothing, so there the client is left alone.
    """
    from huggingface_hub import constants

    offline, silenced = constants.HF_HUB_OFFLINE, logging.root.manager.disable
    host = urllib.parse.urlsplit(constants.ENDPOINT).hostname
    if not urllib.request.getproxies():
        try:
            socket.getaddrinfo(host, None)
        except OSError:
            constants.HF_HUB_OFFLINE = True
    logging.disable(logging.CRITICAL)  # open_clip logs as errors what is reported here
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        logging.disable(silenced)


def _load(architecture: str, pretrained: str) -> nn.Module:
    import open_clip

    file = Path(pretrained)
    options: dict[str, Any] = {"pretrained": pretrained or None}
    if pretrained == "random":
        options = {"pretrained": None, "pretrained_text": False}
    if file.is_file():
        _check_torchscript(architecture, file)
    try:
        with torch.random.fork_rng(devices=[]), _patient_hub():
            torch.manual_seed(RANDOM_SEED)
            return open_clip.create_model(architecture, **options)
    except Exception as error:
        raise UserError(_load_message(architecture, pretrained, error)) from error


def _load_message(architecture: str, pretrained: str, error: Exception) -> str:
    import open_clip

    reason = " ".join(str(error).split())[:160] or type(error).__name__
    if architecture.startswith("local-dir:") or Path(pretrained).is_file():
        where = pretrained or architecture
        return f"cannot load {where} as weights of {architecture.split(':')[0]}: {reason}"
    if architecture.startswith("hf-hub:"):
        repository = architecture.removeprefix("hf-hub:")
        return (
            f"cannot get {architecture} (no network, or no such model): fetch the files of the"
            f" Hugging Face repository {repository} into a folder, then --model local-dir:FOLDER"
        )
    hub = open_clip.get_pretrained_cfg(architecture, pretrained).get("hf_hub", "")
    repository, _, file = hub.rpartition("/")
    file = file or "open_clip_model.safetensors"
    return (
        f"cannot get weights '{pretrained}' of {architecture} (no network?). Fetch {file} of the"
        f" Hugging Face repository {repository} on another machine, then run with"
        f" --model {architecture}:PATH_TO/{file}"
    )


def _check_torchscript(architecture: str, file: Path) -> None:
    """OpenAI's own files are TorchScript archives: say what open_clip would choke on."""
    import zipfile

    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        if not any("/code/" in f"/{name}" for name in archive.namelist()):
            return
    raise UserError(
        f"{file} is a TorchScript archive, as OpenAI published it. Convert it once:"
        f" torch.save(torch.jit.load('{file.name}', map_location='cpu').state_dict(), 'clip.pt');"
        f" then --model {architecture.removesuffix('-quickgelu')}-quickgelu:clip.pt"
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
        if architecture.startswith(_SCHEMAS):
            raise UserError(_load_message(architecture, "", error)) from error
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"cannot get the tokenizer of {architecture} from the Hugging Face hub (no network?):"
            f" {reason}"
        ) from error


def hash_weights(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of a module's state, in name order."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
