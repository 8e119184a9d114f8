"""The fast encoders against open_clip's own forward: features and gradients."""

import contextlib
import copy
import random
from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_clipfit.clip import CLIPClassifier
from cl_clipfit.clip.encoders import text as packed_text
from cl_clipfit.clip.encoders.packing import Packed, pack
from tests.support.encoders import NAMES, build, pixels

VISION: dict[str, dict[str, Any]] = {
    "plain": {},
    "avg": {"pool_type": "avg"},
    "norm after pooling": {"pool_type": "avg", "final_ln_after_pool": True},
    "no first norm": {"no_ln_pre": True},
    "layer scale": {"ls_init_value": 0.5},
}
TEXT: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer scale": {"ls_init_value": 0.5},
    "end token": {"pool_type": "eos", "eos_id": 49407},
    "no projection": {"proj_type": "none", "width": 16},
    "projection with bias": {"proj_bias": True},
}
Ask = Callable[[], Tensor]


def gradients(model: CLIPClassifier, ask: Ask, towers: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Return features, and gradients of a weighted sum with respect to a tower's parameters."""
    visual = {id(p) for p in model.clip.visual.parameters()}
    for p in model.parameters():
        p.requires_grad_((id(p) in visual) == (towers == "image"))
    model.zero_grad()
    features = ask()
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    (F.normalize(features, dim=-1) * weights).sum().backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.requires_grad_(False)
    return features.detach(), found


def assert_same(one: tuple[Tensor, dict[str, Tensor]], other: Any, tolerance: float) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=tolerance, atol=tolerance)
    assert one[1].keys() == other[1].keys()
    assert one[1]
    for name, gradient in one[1].items():
        limit = tolerance * max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(gradient, other[1][name], rtol=0, atol=limit, msg=name)


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("kind", [open_clip.CLIP, open_clip.CustomTextCLIP])
@pytest.mark.parametrize("name", VISION)
def test_image_features_and_gradients_are_open_clips(
    name: str, kind: type, quick_gelu: bool
) -> None:
    model = build(vision=VISION[name], kind=kind, quick_gelu=quick_gelu)
    assert model._towers.knows_image(model.clip)
    expected = gradients(model, lambda: model.clip.encode_image(pixels(), normalize=True), "image")
    found = gradients(model, lambda: model.image_features(pixels()), "image")
    assert_same(expected, found, 1e-5)
    with torch.no_grad():  # another path through attention
        torch.testing.assert_close(model.image_features(pixels()), expected[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [open_clip.CLIP, open_clip.CustomTextCLIP])
@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize(
    "templates", [["a photo of a {}."], ["{}"], ["a {}.", "one {} in the wild", "{}"]]
)
def test_text_features_and_gradients_are_open_clips(
    name: str, kind: type, templates: list[str]
) -> None:
    if name == "no projection" and kind is open_clip.CLIP:
        pytest.skip("CLIP projects its text")
    if "eos_id" in TEXT[name] and not hasattr(open_clip.model.CLIPTextCfg, "eos_id"):
        pytest.skip("this open_clip does not look for an end token")
    model = build(text=TEXT[name], kind=kind)
    assert packed_text.known_tower(model.clip)
    tokens = [model.tokenizer([t.replace("{}", n) for t in templates]) for n in NAMES]

    def stock() -> Tensor:
        each = F.normalize(model.clip.encode_text(torch.cat(tokens)), dim=-1)
        return F.normalize(each.view(len(NAMES), len(templates), -1).mean(1), dim=-1)

    expected = gradients(model, stock, "text")
    assert_same(expected, gradients(model, lambda: model.encode_prompts(tokens), "text"), 1e-5)


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_any_number_of_classes(count: int) -> None:
    model = build()
    names = [f"thing {i}" if i % 3 else f"small grey thing {i}" for i in range(count)]
    tokens = [model.tokenizer([f"a photo of a {name}."]) for name in names]
    with torch.no_grad():
        expected = model.clip.encode_text(torch.cat(tokens), normalize=True)
        torch.testing.assert_close(model.encode_prompts(tokens), expected, rtol=0, atol=1e-5)
    encoded = model._towers.tokens(model.clip, tokens)
    assert encoded < 8 * count + 5  # of 12 places each


@pytest.mark.parametrize("towers", ["image", "text"])
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_bf16_is_as_close_as_its_rounding(towers: str, quick_gelu: bool) -> None:
    model = build(quick_gelu=quick_gelu)
    tokens = [model.tokenizer([f"a photo of a {n}."]) for n in NAMES]
    ask: Ask = (
        (lambda: model.image_features(pixels()))
        if towers == "image"
        else (lambda: model.encode_prompts(tokens))
    )
    exact = gradients(model, ask, towers)
    model.precision = "bf16"
    rough = gradients(model, ask, towers)
    assert rough[0].dtype == torch.float32
    assert not torch.equal(rough[0], exact[0])
    torch.testing.assert_close(rough[0], exact[0], rtol=0, atol=0.03)
    one, other = (torch.cat([g.flatten() for g in found[1].values()]) for found in (exact, rough))
    assert F.cosine_similarity(one, other, dim=0) > 0.995
    assert all(g.dtype == torch.float32 for g in rough[1].values())


def test_towers_of_other_builds_run_as_they_are() -> None:
    resnet = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}
    model = build(vision=resnet)
    images = torch.randn(2, 3, 32, 32)
    assert not model._towers.knows_image(model.clip)
    with torch.no_grad():
        expected = model.clip.encode_image(images, normalize=True)
        torch.testing.assert_close(model.image_features(images), expected)
        model.precision = "bf16"
        rough = model.image_features(images)
    assert rough.dtype == torch.float32
    assert F.cosine_similarity(rough, expected).min() > 0.99


def test_text_towers_without_a_causal_mask_run_at_full_length(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = build(text={"no_causal_mask": True, "pool_type": "last"}, kind=open_clip.CustomTextCLIP)
    tokens = [model.tokenizer([f"a {n}"]) for n in NAMES]
    with torch.no_grad(), caplog.at_level("INFO"):
        expected = model.clip.encode_text(torch.cat(tokens), normalize=True)
        torch.testing.assert_close(model.encode_prompts(tokens), expected)
        model.encode_prompts(tokens)
    assert [r.message for r in caplog.records if "causal" in r.message] == [
        "this text tower is not a causal one of open_clip: prompts are encoded at full length"
    ]
    assert model._towers.tokens(model.clip, tokens) == len(NAMES) * 12


def test_what_is_hooked_or_replaced_is_honoured() -> None:
    model = build()
    images, block = pixels(), model.clip.visual.transformer.resblocks[1]
    with torch.no_grad():
        before = model.image_features(images)
        handle = block.mlp.c_fc.register_forward_hook(lambda module, inputs, out: out * 0)
        expected = model.clip.encode_image(images, normalize=True)
        assert not torch.allclose(before, expected, atol=1e-3)
        torch.testing.assert_close(model.image_features(images), expected)
        handle.remove()

        class Doubled(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return 2 * super().forward(x)

        block.mlp.c_fc.__class__ = Doubled
        expected = model.clip.encode_image(images, normalize=True)
        torch.testing.assert_close(model.image_features(images), expected)


def test_copies_of_weights_follow_the_weights() -> None:
    model = build()
    model.precision = "bf16"
    weight = model.clip.visual.transformer.resblocks[0].mlp.c_fc.weight

    def encode(some: CLIPClassifier) -> Tensor:
        with torch.no_grad():
            return some.image_features(pixels())

    first = encode(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        weight.mul_(-1)
    assert not torch.equal(encode(model), first)
    assert torch.equal(encode(other), first)
    with torch.no_grad():
        weight.mul_(-1)
    assert torch.equal(encode(model), first)
    weight.data = -weight.data
    model.eval()  # as before every evaluation, and every task
    assert not torch.equal(encode(model), first)


def test_text_of_frozen_weights_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    model.add_classes(NAMES)
    calls = []
    encode = model.encode_prompts
    monkeypatch.setattr(model, "encode_prompts", lambda *a, **k: calls.append(1) or encode(*a, **k))
    first = model.text_features([0, 2])
    assert torch.equal(model.text_features([0, 2]), first)
    assert len(calls) == 1
    assert torch.equal(model.text_features([2, 0]), first.flip(0))
    bias = model.clip.transformer.resblocks[0].mlp.c_proj.bias
    with torch.no_grad():
        bias += torch.linspace(-1, 1, len(bias))
    assert not torch.allclose(model.text_features([2, 0]), first.flip(0), atol=1e-3)
    bias.requires_grad_(True)
    assert model.text_features([2, 0]).requires_grad
    assert len(calls) == 4


@pytest.mark.parametrize("setting", [{"micro_batch": 2}, {"recompute": True}])
def test_less_memory_gives_the_same_gradients(setting: dict[str, Any]) -> None:
    model = build()
    ask: Ask = lambda: model.image_features(pixels(5))  # noqa: E731
    expected = gradients(model, ask, "image")
    for name, value in setting.items():
        setattr(model, name, value)
    assert_same(expected, gradients(model, ask, "image"), 1e-6)
    model.zero_grad()
    model.clip.visual.ln_pre.requires_grad_(True)
    images, found = pixels(5), []
    for shared in (False, True):
        with model.shared_embedding(images) if shared else contextlib.nullcontext():
            model.image_features(images).square().sum(0)[0].backward()
        found.append(model.clip.visual.ln_pre.weight.grad.clone())
        model.zero_grad()
    torch.testing.assert_close(*found)


def test_micro_batches_hold_fewer_activations() -> None:
    model = build()
    model.clip.visual.ln_pre.requires_grad_(True)
    held = []

    def keep(tensor: Tensor) -> Tensor:
        held.append(tensor.numel() if tensor.grad_fn is not None else 0)
        return tensor

    sizes = []
    for micro_batch in (None, 1):
        model.micro_batch = micro_batch
        held.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.image_features(pixels(8))
        sizes.append(sum(held))
    assert sizes[1] < sizes[0] / 4


def test_patches_are_embedded_once_while_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    model.clip.visual.ln_pre.requires_grad_(True)
    calls = []
    convolve = F.conv2d
    monkeypatch.setattr(
        "cl_clipfit.clip.encoders.vision.F.conv2d",
        lambda *a, **k: calls.append(1) or convolve(*a, **k),
    )
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    expected = model.image_features(model._pixels(images))
    calls.clear()
    with model.shared_embedding(images):
        for _ in range(3):
            torch.testing.assert_close(model.image_features(images), expected)
        assert len(calls) == 1
        model.image_features(images.clone())  # others are others
        assert len(calls) == 2
    model.image_features(images)
    assert len(calls) == 3
    model.clip.visual.conv1.weight.requires_grad_(True)
    with model.shared_embedding(images):
        model.image_features(images)
        model.image_features(images)
    assert len(calls) == 5


@pytest.mark.parametrize("seed", range(20))
def test_packed_prompts_can_be_read_back(seed: int) -> None:
    draw = random.Random(seed)
    prompts = [
        [0, *(draw.randint(1, 2 + seed % 3) for _ in range(draw.randint(0, 6))), 9]
        for _ in range(draw.randint(1, 12))
    ]
    for limit in (3, 12, 1000):
        parts, order = pack(prompts, limit)
        found = [read_back(part, row) for part in parts for row in part.last.tolist()]
        assert [found[i] for i in order.tolist()] == prompts
        assert all(len(part) <= max(limit, *map(len, prompts)) for part in parts)


def read_back(packed: Packed, row: int) -> list[int]:
    """Return what the token of a row sees, in the order of the positions."""
    bundle, place = divmod(row, packed.hidden.shape[-1])
    seen = (~packed.hidden[bundle, 0, place]).nonzero()[:, 0] + bundle * packed.hidden.shape[-1]
    assert packed.positions[seen].tolist() == list(range(len(seen)))
    return packed.ids[seen].tolist()


def test_what_prompts_begin_with_is_encoded_once() -> None:
    one, other = [0, 1, 2, 3], [0, 1, 5, 6]
    prompts = [[*start, name, 9] for name in range(10, 30) for start in (one, other)]
    (packed,), _ = pack(prompts, 1000)
    assert len(packed) == len(one) + len(other) - 2 + 2 * len(prompts)
    twice, _ = pack([*prompts, *prompts], 1000)
    assert len(twice[0]) == len(packed)


@pytest.mark.parametrize("count", [1, 30, 1000])
def test_bundles_are_nearly_full(count: int) -> None:
    draw = random.Random(0)
    prompts = [[0, 1, 2, *draw.choices(range(3, 500), k=1 + i % 4), 9] for i in range(count)]
    (packed,), _ = pack(prompts, 10**6)
    filler = (packed.hidden.logical_not().sum(-1) == 1).sum() - len(packed.hidden)  # but the roots
    assert filler <= 0.05 * len(packed)
