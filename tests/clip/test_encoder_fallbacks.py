"""Whatever was hooked into a model or put in the place of a part counts, as in open_clip's own."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_clipfit.clip import CLIPClassifier
from tests.support.encoders import NAMES, build, pixels

Change = Callable[[Any], object]


def stretched(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * torch.arange(output.shape[1])[:, None]  # a token by its place


CHANGES: dict[str, Change] = {
    "hook on a LayerNorm": lambda block: block.ln_1.register_forward_hook(stretched),
    "hook before a LayerNorm": lambda block: block.ln_2.register_forward_pre_hook(
        lambda module, inputs: (inputs[0].sin(),)
    ),
    "LayerNorm with a forward of its own": lambda block: setattr(
        block.ln_2, "forward", lambda rows: rows.sin()
    ),
    "another activation": lambda block: setattr(block.mlp, "gelu", nn.ReLU()),
    "hook on the activation": lambda block: block.mlp.gelu.register_forward_hook(stretched),
    "hook on a linear": lambda block: block.mlp.c_fc.register_forward_hook(stretched),
    "hook on what scales": lambda block: block.ls_1.register_forward_hook(stretched),
    "attention of its own": lambda block: setattr(
        block, "attention", lambda q_x, k_x=None, v_x=None, attn_mask=None: q_x
    ),
}


def features(model: CLIPClassifier, tower: str) -> Tensor:
    return model.image_features(pixels()) if tower == "image" else model.text_features()


def stock(model: CLIPClassifier, tower: str) -> Tensor:
    if tower == "image":
        return model.clip.encode_image(pixels(), normalize=True)
    return model.clip.encode_text(torch.cat(model._tokens), normalize=True)


@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("change", CHANGES)
def test_changes_count(
    change: str, tower: str, compiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compiler(f, backend="aot_eager"))
    model = build()
    model.add_classes(NAMES)
    model.compiles = compiles
    before = features(model, tower)  # fills what is kept
    blocks = model.clip.visual if tower == "image" else model.clip
    CHANGES[change](blocks.transformer.resblocks[0])
    if compiles:  # which is for training alone
        model.train_only([blocks.transformer.resblocks[1].ln_1.bias])
    expected = stock(model, tower)
    assert (expected - before).abs().max() > 1e-3
    torch.testing.assert_close(features(model, tower), expected, rtol=0, atol=1e-5)


def test_a_mask_that_is_not_causal_counts() -> None:
    model = build()
    model.add_classes(NAMES)
    before = model.text_features()
    model.clip.attn_mask.zero_()
    assert (stock(model, "text") - before).abs().max() > 1e-3
    torch.testing.assert_close(model.text_features(), stock(model, "text"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_after_inference_mode(precision: Any) -> None:
    model = build()
    model.precision = precision
    model.add_classes(NAMES)
    with torch.inference_mode():
        model.image_features(pixels())
        model.text_features()
    trained = [block.ln_1.bias for block in model.clip.visual.transformer.resblocks]
    trained += [block.mlp.c_proj.bias for block in model.clip.transformer.resblocks]
    model.train_only(trained)
    model(pixels()).sum().backward()
    assert all(p.grad is not None for p in trained)


def test_weights_that_trained_for_a_while_are_not_remembered_from_before() -> None:
    model = build()
    model.precision = "bf16"
    model.add_classes(NAMES)
    weight = model.clip.transformer.resblocks[0].mlp.c_fc.weight
    before = model.text_features()
    model.train_only([weight])
    model.text_features()
    weight.data.mul_(-1)  # as a fused optimiser does: the version stays
    model.train_only([])
    other = copy.deepcopy(model)
    assert torch.equal(model.text_features(), other.text_features())
    assert not torch.equal(model.text_features(), before)


def test_what_is_returned_may_be_changed() -> None:
    model = build()
    model.add_classes(NAMES)
    expected = model.text_features(normalize=False).clone()
    for _ in range(2):
        model.text_features(normalize=False).zero_()
    assert torch.equal(model.text_features(normalize=False), expected)


def test_raw_features_do_not_depend_on_what_is_encoded_beside() -> None:
    model = build()
    model.add_classes(["cat"], ["a {}."])
    model.add_classes(["dog"], ["a {}.", "one {}"])
    alone = model.text_features([0], normalize=False)
    both = model.text_features([0, 1], normalize=False)
    torch.testing.assert_close(both[:1], alone)
    each = F.normalize(model.clip.encode_text(model._tokens[1]), dim=-1)
    torch.testing.assert_close(both[1], each.mean(0))
    with pytest.raises(ValueError, match="no prompts"):
        model.encode_names([])
