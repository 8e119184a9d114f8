"""Parse and check model names: `ARCH`, `ARCH:TAG`, `ARCH:FILE`, `ARCH:TAG:FILE`, ..."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cl_clipfit.config.model_names import explain_unknown
from cl_clipfit.errors import UserError, is_file, listed, nearest

MINI = "mini"
MINI_FOLDER = Path(__file__).parent.parent / "mini"
DEFAULT_MODEL = "ViT-B-16-quickgelu:openai"
HUB, LOCAL = "hf-hub:", "local-dir:"
_PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode", "fill_color")


def parse_model(name: str) -> tuple[str, str]:
    """Split `ARCH[:PRETRAINED]`; PRETRAINED is "" if none is given.

    Example:
        >>> parse_model("ViT-B-32:laion2b_s34b_b79k")
        ('ViT-B-32', 'laion2b_s34b_b79k')
        >>> parse_model("mini")
        ('mini', '')
        >>> parse_model("hf-hub:timm/ViT-B-16-SigLIP")
        ('hf-hub:timm/ViT-B-16-SigLIP', '')
        >>> parse_model("my/model.json:weights.pt")
        ('my/model.json', 'weights.pt')
    """
    if name.startswith((HUB, LOCAL)):
        return name, ""
    architecture, _, pretrained = name.partition(":")
    return architecture, pretrained


def is_own(architecture: str) -> bool:
    """Return whether a name stands for a configuration that comes with its weights."""
    return architecture.startswith((HUB, LOCAL)) or architecture.lower().endswith(".json")


@dataclass(frozen=True)
class Weights:
    """The source of weights: a file, a tag, or both (the tag then tells how they were trained).

    Attributes:
        tag: a tag of open_clip, "random", or "" for a file without a tag.
        file: checkpoint file, or "" to download the weights of the tag.
    """

    tag: str
    file: str = ""

    @property
    def label(self) -> str:
        """Name to display: without folders, which are private; a hash distinguishes files."""
        return Path(self.file).name if self.file else self.tag


def resolve_weights(architecture: str, pretrained: str) -> Weights:
    """Resolve a tag, a file or both, with every check that does not need the weights.

    Raises:
        UserError: an unknown architecture or tag, no weights named, or an activation mismatch.
    """
    import open_clip

    if architecture not in open_clip.list_models():
        raise UserError(explain_unknown(architecture, pretrained, open_clip.list_models()))
    if architecture == MINI and not pretrained:
        return Weights("", str(MINI_FOLDER / "weights.safetensors"))
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if not pretrained:
        raise UserError(
            f"model '{architecture}' needs weights: {architecture}:TAG, {architecture}:FILE or"
            f" {architecture}:random. Tags: {listed(tags) or 'none'}."
        )
    if pretrained == "random":
        return Weights("random")
    # A tag takes precedence, as in open_clip: a file of that name must not disable the checks.
    tag, _, file = pretrained.partition(":")
    if open_clip.get_pretrained_cfg(architecture, tag):
        _check_activation(architecture, tag)
        if file and not is_file(file):
            raise UserError(f"--model {architecture}:{tag}:{file}: there is no such file")
        return Weights(tag, file)
    if not is_file(pretrained):
        raise UserError(
            f"'{pretrained}' is neither a file nor a tag of weights for {architecture}."
            f" {nearest(pretrained, tags)}"
        )
    return Weights("", pretrained)


def preprocessing_of(architecture: str, weights: Weights) -> dict[str, Any]:
    """Return the preprocessing of training, which open_clip applies only to downloads.

    A file without a tag gets the preprocessing that all tags of its architecture share.

    Raises:
        UserError: the tags differ.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    defaults = asdict(PreprocessCfg())
    variants = {}
    for tag in [weights.tag] if weights.tag else tags:
        config = open_clip.get_pretrained_cfg(architecture, tag)
        settings = {key: defaults[key] for key in _PREPROCESS_KEYS}
        settings |= {key: config[key] for key in settings if config.get(key) is not None}
        variants[repr(settings)] = settings
    if len(variants) > 1:
        raise UserError(
            f"weights of {architecture} were trained with different preprocessing: specify a tag,"
            f" --model {architecture}:TAG:{weights.file}. Tags: {listed(tags)}."
        )
    return next(iter(variants.values()), {})


def activation_doubt(architecture: str, weights: Weights) -> str:
    """Return a warning about a file that may need the other activation; "" if there is no doubt.

    Nothing in a file tells the activation that its weights were trained with. There is a doubt if
    open_clip knows the architecture, or tags of its weights, with both.
    """
    import open_clip

    twin = "" if weights.tag or architecture == MINI else _twin(architecture)
    if not twin:
        return ""
    built = _uses_quick_gelu(architecture)
    others = [
        tag
        for tag in open_clip.list_pretrained_tags_by_model(twin)
        if _trained_with_quick_gelu(twin, tag) != built
    ]
    file, like = weights.label, f" (such as {listed(others[:3])})" if others else ""
    return (
        f"{architecture}:{file}: {_gelu(built)} is assumed, which a file does not tell. Weights"
        f" trained with {_gelu(not built)}{like} need {twin}:{file}, or every feature is wrong"
    )


def _check_activation(architecture: str, tag: str) -> None:
    """Refuse a GELU other than the one that the weights were trained with.

    open_clip compares the same two settings, but only warns.
    """
    trained = _trained_with_quick_gelu(architecture, tag)
    if trained == _uses_quick_gelu(architecture):
        return
    twin = _twin(architecture)
    hint = f" Use --model {twin}:{tag}" if twin else ""
    raise UserError(
        f"weights '{tag}' were trained with {_gelu(trained)}, which {architecture} does not use"
        f" (QuickGELU mismatch): every feature would be wrong.{hint}"
    )


def _gelu(quick: bool) -> str:
    return "QuickGELU" if quick else "plain GELU"


def _uses_quick_gelu(architecture: str) -> bool:
    import open_clip

    return bool((open_clip.get_model_config(architecture) or {}).get("quick_gelu", False))


def _trained_with_quick_gelu(architecture: str, tag: str) -> bool:
    """Return the activation of a tag; of one that does not tell (roberta-ViT-B-32), the built."""
    import open_clip

    trained = open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu")
    return _uses_quick_gelu(architecture) if trained is None else bool(trained)


def _twin(architecture: str) -> str:
    """Return the architecture of open_clip that differs in its activation alone, or ""."""
    import open_clip

    def config(name: str, other: bool = False) -> dict[str, Any]:
        quick = _uses_quick_gelu(name) != other
        return {**(open_clip.get_model_config(name) or {}), "quick_gelu": quick}

    wanted = config(architecture, other=True)
    return next((name for name in open_clip.list_models() if config(name) == wanted), "")
