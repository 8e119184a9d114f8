"""Parse and check model names: `ARCH`, `ARCH:TAG`, `ARCH:FILE`, `ARCH:TAG:FILE`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cl_clipfit.errors import UserError, is_file, nearest, program

MINI = "mini"
MINI_FOLDER = Path(__file__).parent.parent / "mini"
DEFAULT_MODEL = "ViT-B-16-quickgelu:openai"
SCHEMAS = ("hf-hub:", "local-dir:")
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
    """
    if name.startswith(SCHEMAS):
        return name, ""
    architecture, _, pretrained = name.partition(":")
    return architecture, pretrained


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
        return Path(self.file).name if self.file else self.tag or "hub"


def resolve_weights(architecture: str, pretrained: str) -> Weights:
    """Resolve a tag, a file or both, with every check that does not need the weights.

    Raises:
        UserError: an unknown architecture or tag, no weights named, or an activation mismatch.
    """
    import open_clip

    if architecture not in open_clip.list_models():
        suggestion = nearest(architecture, open_clip.list_models())
        raise UserError(
            f"unknown model architecture '{architecture}'. {suggestion}"
            f" All are listed by: {program()} list models"
        )
    if architecture == MINI and not pretrained:
        return Weights("", str(MINI_FOLDER / "weights.safetensors"))
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if not pretrained:
        raise UserError(
            f"model '{architecture}' needs weights: {architecture}:TAG, {architecture}:FILE or"
            f" {architecture}:random. Tags: {', '.join(tags) or 'none'}."
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
            f" --model {architecture}:TAG:{weights.file}. Tags: {', '.join(tags)}."
        )
    return next(iter(variants.values()), {})


def _check_activation(architecture: str, tag: str) -> None:
    """Refuse a GELU other than the one that the weights were trained with.

    open_clip compares the same two settings, but only warns. It also warns about tags without the
    setting (roberta-ViT-B-32), whose weights were trained with that of the architecture.
    """
    import open_clip

    trained = open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu")
    built = bool((open_clip.get_model_config(architecture) or {}).get("quick_gelu", False))
    if trained is None or trained == built:
        return
    bare = architecture.removesuffix("-quickgelu")
    right = f"{bare}-quickgelu" if trained else bare
    hint = f" Use --model {right}:{tag}" if right in open_clip.list_models() else ""
    raise UserError(
        f"weights '{tag}' were trained with {'QuickGELU' if trained else 'plain GELU'}, which"
        f" {architecture} does not use (QuickGELU mismatch): every feature would be wrong.{hint}"
    )
