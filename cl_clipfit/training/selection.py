"""Select parameters by module type and tower, never by a substring of their names.

Substrings fail: timm towers name their LayerNorms "norm", the image tower and the pooling of CLIP's
ResNets also have a `c_proj.bias`, and attention stores its bias as `in_proj_bias`.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

TextBiases = Literal["second-ffn", "all", "none"]
LayerNorms = Literal["all", "pre", "none"]
Layers = tuple[int, int]  # first and last block, both included, counted from 0


@dataclass(frozen=True)
class TowerSelection:
    """Selected parameters of each tower.

    Attributes:
        text: parameters of the text tower.
        image: parameters of the image tower.
    """

    text: list[nn.Parameter]
    image: list[nn.Parameter]


def parse_layers(text: str) -> Layers:
    """Read a layer range.

    Raises:
        ValueError: the first layer comes after the last.

    Example:
        >>> parse_layers("0-3"), parse_layers("11")
        ((0, 3), (11, 11))
    """
    first, _, last = text.partition("-")
    layers = int(first), int(last or first)
    if layers[0] > layers[1]:
        raise ValueError(f"layers {text}: the first must not come after the last")
    return layers


def check_layers(text: str) -> str:
    """Return a layer range unchanged if it is valid.

    Raises:
        ValueError: it is not a range of blocks.
    """
    if not re.fullmatch(r"\d{1,4}(-\d{1,4})?", text):
        raise ValueError("expected a range of blocks, as 0-5, or one block, as 3")
    parse_layers(text)
    return text


def text_blocks(clip: Any) -> list[nn.Module]:
    """Return the transformer blocks of the text tower of a `CLIP`, `CustomTextCLIP` or `CoCa`.

    Raises:
        ValueError: the text tower has another architecture, such as those of Hugging Face.
    """
    tower = getattr(clip, "text", clip)
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
    if blocks is None:
        raise ValueError(
            f"the text tower {type(tower).__name__} has no residual blocks known here;"
            " choose a model with open_clip's own text tower"
        )
    return list(blocks)


def image_blocks(clip: Any) -> list[nn.Module]:
    """Return the blocks of an image tower of open_clip or timm; [] if it has none."""
    visual = clip.visual
    trunk = getattr(visual, "trunk", None)
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    if blocks is None:
        blocks = getattr(trunk, "blocks", None)
    return [] if blocks is None else list(blocks)


def _in_range(blocks: list[nn.Module], layers: Layers | None, tower: str) -> list[nn.Module]:
    if layers is None:
        return blocks
    if layers[1] >= len(blocks):
        raise ValueError(
            f"{tower} layers {layers[0]}-{layers[1]}: the tower has {len(blocks)} blocks,"
            f" 0 to {len(blocks) - 1}"
            if blocks
            else f"{tower} layers: this {tower} tower has no numbered blocks"
        )
    return blocks[layers[0] : layers[1] + 1]


def select_text_biases(
    clip: Any, which: TextBiases = "second-ffn", layers: Layers | None = None
) -> list[nn.Parameter]:
    """Return biases of the text tower.

    Args:
        clip: an open_clip model.
        which: "second-ffn", the bias of the second linear of every feed-forward network (6,144 on
            ViT-B/16); "all", every bias (68,096), those of LayerNorms included; or "none".
        layers: blocks to choose from; default all. With a range, "all" excludes the modules after
            the blocks.

    Raises:
        ValueError: the range is outside of the tower, or the architecture of the tower is unknown.
    """
    if which == "none":
        return []
    blocks = _in_range(text_blocks(clip), layers, "text")
    if which == "second-ffn":
        feed_forward: list[Any] = [block.mlp for block in blocks]
        linears = [[m for m in f.modules() if isinstance(m, nn.Linear)] for f in feed_forward]
        return [block[-1].bias for block in linears]
    tower = getattr(clip, "text", clip)
    modules = [*blocks, tower.ln_final] if layers is None else blocks
    projection = getattr(tower, "text_projection", None)
    if layers is None and isinstance(projection, nn.Linear):
        modules.append(projection)
    return [p for m in modules for n, p in m.named_parameters() if n.endswith("bias")]


def select_layer_norms(
    clip: Any, which: LayerNorms = "all", layers: Layers | None = None
) -> list[nn.Parameter]:
    """Return weights and biases of LayerNorms of the image tower.

    Args:
        clip: an open_clip model.
        which: "all" (39,936 on ViT-B/16); "pre", the one before the first block (1,536); "none".
        layers: blocks to choose from; default all. With a range, "all" excludes LayerNorms outside
            of the blocks.

    Returns:
        an empty list if the tower has none, as CLIP's ResNets.

    Raises:
        ValueError: the range is outside of the tower.
    """
    if which == "none":
        return []
    visual = clip.visual
    if which == "pre":
        trunk = getattr(visual, "trunk", None)
        roots = [getattr(visual, "ln_pre", None), getattr(trunk, "norm_pre", None)]
    elif layers is None:
        roots = [visual]
    else:
        roots = list(_in_range(image_blocks(clip), layers, "image"))
    modules = [m for root in roots if root is not None for m in root.modules()]
    norms = [m for m in modules if isinstance(m, nn.LayerNorm)]
    return list(dict.fromkeys(p for m in norms for p in m.parameters(recurse=False)))


def select_image_biases(clip: Any) -> list[nn.Parameter]:
    """Return every bias of the image tower, those of LayerNorms included: 102,912 on ViT-B/16."""
    return [p for name, p in clip.visual.named_parameters() if name.endswith("bias")]


def select_text_norms(clip: Any) -> list[nn.Parameter]:
    """Return weights and biases of the LayerNorms of the text tower: 25,600 on ViT-B/16.

    Raises:
        ValueError: the architecture of the tower is unknown.
    """
    blocks, tower = text_blocks(clip), getattr(clip, "text", clip)
    modules = [m for root in (*blocks, tower.ln_final) for m in root.modules()]
    norms = [m for m in modules if isinstance(m, nn.LayerNorm)]
    return [p for m in norms for p in m.parameters(recurse=False)]


def select_query_key_value(clip: Any) -> list[nn.Parameter]:
    """Return the joint weights (3 width, width) of queries, keys and values of both towers.

    Raises:
        ValueError: the architecture of the text tower is unknown.
    """
    attentions: list[Any] = [
        getattr(b, "attn", b) for b in (*text_blocks(clip), *image_blocks(clip))
    ]
    joint = [getattr(attention, "in_proj_weight", None) for attention in attentions]
    timm = [getattr(getattr(attention, "qkv", None), "weight", None) for attention in attentions]
    return [p for pair in zip(joint, timm, strict=True) for p in pair if p is not None]


def select_matrices(clip: Any) -> list[nn.Parameter]:
    """Return every weight matrix of the blocks of both towers: 122,683,392 on ViT-B/16.

    Raises:
        ValueError: the architecture of the text tower is unknown.
    """
    blocks = [*text_blocks(clip), *image_blocks(clip)]
    return [p for block in blocks for p in block.parameters() if p.dim() == 2]


def select_first_ffn(clip: Any) -> list[nn.Linear]:
    """Return the first linear of every feed-forward network of both towers.

    Raises:
        ValueError: the architecture of the text tower is unknown.
    """
    feed_forward: list[Any] = [b.mlp for b in (*text_blocks(clip), *image_blocks(clip))]
    linears = [[m for m in f.modules() if isinstance(m, nn.Linear)] for f in feed_forward]
    return [block[0] for block in linears]


def select_clipfit(
    clip: Any,
    text_biases: TextBiases = "second-ffn",
    layer_norms: LayerNorms = "all",
    text_layers: Layers | None = None,
    image_layers: Layers | None = None,
) -> TowerSelection:
    """Return the parameters that CLIPFit trains: 46,080 on ViT-B/16 and ViT-B/32.

    As in Li et al. 2024 (arXiv 2409.16718) and its released code, they are the bias of the second
    linear of every text feed-forward network, and the LayerNorms of the image tower. The arguments
    select its ablations.

    Raises:
        ValueError: nothing is selected, or a range is outside of a tower.
    """
    selection = TowerSelection(
        select_text_biases(clip, text_biases, text_layers),
        select_layer_norms(clip, layer_norms, image_layers),
    )
    if not (selection.text or selection.image):
        raise ValueError("nothing would train: neither text biases nor LayerNorms are selected")
    return selection


def select_all_but_scale(clip: nn.Module) -> list[nn.Parameter]:
    """Return all parameters except the logit scale and SigLIP's logit bias.

    The scale is part of the pretrained calibration. A bias that all classes share has no gradient
    in a cross-entropy, so that only weight decay would change it.
    """
    return [p for name, p in clip.named_parameters() if name not in ("logit_scale", "logit_bias")]
