"""What a selector selects, counted on real architectures, and arithmetic on deltas."""

import open_clip
import pytest
import torch
from torch import nn

from cl_clipfit.merging.layers import change_by_layer
from cl_clipfit.training.selection import (
    parse_layers,
    select_all_but_scale,
    select_clipfit,
    select_layer_norms,
    select_text_biases,
)


def build(architecture: str, custom: bool | None = None) -> nn.Module:
    """Build an architecture without memory for its weights."""
    config = open_clip.get_model_config(architecture)
    custom_text = config.pop("custom_text", False) if custom is None else custom
    with torch.device("meta"):
        if "multimodal_cfg" in config:
            return open_clip.CoCa(**config)
        return (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**config)


def count(parameters: list[nn.Parameter]) -> int:
    assert len({id(p) for p in parameters}) == len(parameters)
    return sum(p.numel() for p in parameters)


@pytest.mark.parametrize(
    ("architecture", "text", "image"),
    [
        # Published and derived by hand: blocks * width, and 2 * width * LayerNorms.
        ("ViT-B-16", 12 * 512, 2 * 768 * 26),
        ("ViT-B-32-quickgelu", 12 * 512, 2 * 768 * 26),
        ("ViT-L-14", 12 * 768, 2 * 1024 * 50),
        ("RN50", 12 * 512, 0),
        ("ViT-B-16-SigLIP", 12 * 768, 2 * 768 * 26),
        ("PE-Core-B-16", 24 * 1024, 2 * 768 * 27),
        ("MobileCLIP-S1", 12 * 512, 0),
        ("coca_ViT-B-32", 12 * 512, 2 * (26 * 768 + 2 * 512)),  # it pools to width 512
    ],
)
def test_clipfit_selects_the_published_set(architecture: str, text: int, image: int) -> None:
    chosen = select_clipfit(build(architecture))
    assert (count(chosen.text), count(chosen.image)) == (text, image)
    if architecture.startswith("ViT-B-") and "SigLIP" not in architecture:
        assert text + image == 46_080


@pytest.mark.parametrize("custom", [False, True])
def test_names_are_those_of_the_released_code(custom: bool) -> None:
    clip = build("ViT-B-32", custom)
    chosen = select_clipfit(clip)
    names = {id(p): name for name, p in clip.named_parameters()}
    text = "text." if custom else ""
    assert [names[id(p)] for p in chosen.text] == [
        f"{text}transformer.resblocks.{block}.mlp.c_proj.bias" for block in range(12)
    ]
    expected = {
        name
        for name in names.values()
        if name.startswith("visual.") and name.split(".")[-2].startswith("ln_")
    }
    assert {names[id(p)] for p in chosen.image} == expected
    assert len(expected) == 52


@pytest.mark.parametrize(
    ("options", "text", "image"),
    [
        ({"text_biases": "all"}, 68_096, 39_936),
        ({"text_biases": "none"}, 0, 39_936),
        ({"layer_norms": "pre"}, 6_144, 1_536),
        ({"layer_norms": "none"}, 6_144, 0),
        ({"text_layers": (0, 5)}, 6 * 512, 39_936),
        ({"image_layers": (11, 11)}, 6_144, 2 * 2 * 768),
        ({"text_biases": "all", "text_layers": (2, 2)}, (68_096 - 512) // 12, 39_936),
    ],
)
def test_ablations(options: dict, text: int, image: int) -> None:
    chosen = select_clipfit(build("ViT-B-16"), **options)
    assert (count(chosen.text), count(chosen.image)) == (text, image)


def test_what_cannot_be_selected_is_an_error() -> None:
    clip = build("ViT-B-32")
    with pytest.raises(ValueError, match="nothing would train"):
        select_clipfit(clip, "none", "none")
    with pytest.raises(ValueError, match="nothing would train"):
        select_clipfit(build("RN50"), "none")
    with pytest.raises(ValueError, match="the tower has 12 blocks, 0 to 11"):
        select_text_biases(clip, layers=(3, 12))
    with pytest.raises(ValueError, match="no numbered blocks"):
        select_layer_norms(build("RN50"), layers=(0, 1))
    with pytest.raises(ValueError, match="no residual blocks"):
        clip.text = nn.Linear(2, 2)
        select_text_biases(clip)
    with pytest.raises(ValueError, match="must not come after"):
        parse_layers("4-2")


def test_all_but_scale() -> None:
    for architecture in ("ViT-B-32", "ViT-B-16-SigLIP"):
        clip = build(architecture)
        left = {n for n, _ in clip.named_parameters()} - {
            n for n, p in clip.named_parameters() if any(p is q for q in select_all_but_scale(clip))
        }
        assert left == {"logit_scale"} | ({"logit_bias"} if "SigLIP" in architecture else set())
    assert count(select_all_but_scale(build("ViT-B-32"))) == 151_277_313 - 1


def test_change_is_the_root_mean_square_of_a_layer() -> None:
    clip = open_clip.CLIP(
        16,
        {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        {"context_length": 12, "vocab_size": 64, "width": 16, "heads": 2, "layers": 2},
    )
    start = {n: p.detach().clone() for n, p in clip.named_parameters()}
    end = dict(start)
    end["visual.ln_pre.bias"] = start["visual.ln_pre.bias"] + 3.0
    end["transformer.resblocks.1.mlp.c_proj.bias"] = torch.zeros(16)
    changes = change_by_layer(end, start)
    assert changes.pop("visual.ln_pre") == pytest.approx((9.0 / 2) ** 0.5)
    moved = start["transformer.resblocks.1.mlp.c_proj.bias"].square().sum().item()
    values = sum(p.numel() for n, p in start.items() if n.startswith("transformer.resblocks.1."))
    assert changes.pop("transformer.resblocks.1") == pytest.approx((moved / values) ** 0.5)
    assert set(changes.values()) == {0.0}
    assert {"visual.conv1", "visual.proj", "token_embedding", "text_projection"} <= set(changes)
