"""CoOp, KgCoOp and the linear head against plain PyTorch on open_clip's own pieces."""

import copy
from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg

from cl_clipfit import (
    CLIPClassifier,
    CLIPStrategy,
    Recipe,
    ScopeOptions,
    Source,
    UserError,
    build_scenario,
)
from cl_clipfit.clip.context import learn_context
from cl_clipfit.methods.prompt import PromptOptions
from cl_clipfit.strategies.coop import CoOp
from cl_clipfit.strategies.kgcoop import KgCoOp, KgCoOpOptions
from cl_clipfit.strategies.linear_head import LinearHead
from tests.support.tiny import TINY_CLIP

Build = Callable[..., CLIPClassifier]
TASK, SEEN = [2, 3], [0, 1, 2, 3]  # the second of three tasks
TOKENIZER = open_clip.SimpleTokenizer(context_length=32)
SCOPES = {"task": TASK, "seen": SEEN}
HOSTS = [(CoOp, "context"), (KgCoOp, "context"), (LinearHead, "head")]


def roomy(custom_text: bool = False) -> CLIPClassifier:
    """Return a random CLIP that reads 32 tokens, in either of open_clip's two layouts."""
    config = {**TINY_CLIP, "text_cfg": {**TINY_CLIP["text_cfg"], "context_length": 32}}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**config)
    open_clip.set_model_preprocess_cfg(clip, {**PreprocessCfg().__dict__, "size": 16})
    return CLIPClassifier(clip, TOKENIZER)


def middle(strategy: CLIPStrategy) -> Any:
    """Put a strategy into the middle of task 2, with its parameters moved off their start."""
    strategy.task_classes, strategy.seen_classes = list(TASK), list(SEEN)
    strategy.select()
    generator = torch.Generator().manual_seed(5)
    for parameter in strategy.selection.values():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return strategy


def batch(source: Source) -> tuple[torch.Tensor, torch.Tensor]:
    own = torch.isin(source.train.labels, torch.tensor(TASK))
    return source.train.images[own], source.train.labels[own]


def by_hand(clip: Any, context: torch.Tensor, names: list[str], words: int = 4) -> torch.Tensor:
    """Encode [start] context name . [end], from embeddings put together by hand."""
    tower = getattr(clip, "text", clip)
    features = []
    for name in names:
        ids = TOKENIZER([f"a photo of a {name}."])[0]
        last = int(ids.argmax())  # the end token
        table = tower.token_embedding.weight
        pieces = [table[ids[:1]], context, table[ids[1 + words : last + 1]]]
        length = sum(len(piece) for piece in pieces)
        pieces.append(table[ids.new_zeros(len(ids) - length)])
        x = torch.cat(pieces)[None] + tower.positional_embedding
        x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask))
        features.append(x[0, length - 1] @ tower.text_projection)
    return F.normalize(torch.stack(features), dim=-1)


@pytest.mark.parametrize("ce_scope", ["task", "seen"])
@pytest.mark.parametrize("host", ["coop", "kgcoop/task", "kgcoop/seen"])
@pytest.mark.parametrize("length", [None, 16])
def test_loss_and_gradient_are_the_published_ones(
    host: str, ce_scope: str, length: int | None, source: Source
) -> None:
    common: Any = {"ce_scope": ce_scope, "context_tokens": length}
    names, kd = list(source.class_names), host.partition("/")[2]
    strategy: Any = (
        KgCoOp(model=roomy(), class_names=names, options=KgCoOpOptions(kd_scope=kd, **common))
        if kd
        else CoOp(model=roomy(), class_names=names, options=PromptOptions(**common))
    )
    model = middle(strategy).model
    images, labels = batch(source)
    loss = strategy.training_loss(images, labels)
    loss.backward()

    # In float64: open_clip's own fp32 is as far from it as ours.
    context = model.context.detach().double().requires_grad_(True)
    clip, ranked = copy.deepcopy(model.clip).double(), SCOPES[ce_scope]
    image = clip.encode_image(model.preprocess(images).double(), normalize=True)
    text = by_hand(clip, context, [names[c] for c in ranked])
    targets = torch.tensor([ranked.index(label) for label in labels.tolist()])
    expected = F.cross_entropy(clip.logit_scale.exp() * image @ text.T, targets)
    if kd:
        held = [names[c] for c in SCOPES[kd]]
        words = TOKENIZER([f"a photo of a {name}." for name in held])
        anchors = F.normalize(clip.encode_text(words), dim=-1)
        cosines = F.cosine_similarity(by_hand(clip, context, held), anchors)
        assert cosines.max() < 1 - 1e-4
        expected = expected + 8 * (1 - cosines.mean())
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    assert context.grad.abs().max() > 1e-3
    torch.testing.assert_close(model.context.grad.double(), context.grad, rtol=1e-4, atol=1e-5)
    assert all(p.grad is None for n, p in model.named_parameters() if n != "context")


@pytest.mark.parametrize("ce_scope", ["task", "seen"])
def test_linear_head_is_a_linear_layer_on_image_features(
    ce_scope: str, tiny: Build, source: Source
) -> None:
    strategy = middle(
        LinearHead(
            model=tiny(), class_names=source.class_names,
            options=ScopeOptions(ce_scope=ce_scope),
        )
    )  # fmt: skip
    model, ranked = strategy.model, SCOPES[ce_scope]
    model.clip.logit_bias = torch.nn.Parameter(torch.tensor(-3.0), requires_grad=False)  # SigLIP's
    images, labels = batch(source)
    loss = strategy.training_loss(images, labels)
    loss.backward()
    weight = model.head.detach().clone().requires_grad_(True)
    image = model.clip.encode_image(model.preprocess(images), normalize=True)
    logits = F.linear(image, model.clip.logit_scale.exp() * weight) - 3
    targets = torch.tensor([ranked.index(label) for label in labels.tolist()])
    expected = F.cross_entropy(logits[:, ranked], targets)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(model.head.grad, weight.grad)
    torch.testing.assert_close(strategy.scores(images), logits)
    features = strategy.features
    assert (features.classes, features.raw_text) == (ranked, None)
    assert torch.equal(features.text, model.head[ranked])


@pytest.mark.parametrize(("host", "name"), HOSTS)
def test_it_starts_at_zero_shot_and_only_its_own_parameter_trains(
    host: type[CLIPStrategy], name: str, tiny: Build, source: Source
) -> None:
    zero_shot = tiny()
    zero_shot.add_classes(source.class_names)
    images = source.test.images
    strategy: Any = host(
        model=tiny(), class_names=source.class_names,
        recipe=Recipe(epochs=1, batch_size=8, lr=0.02),
    )  # fmt: skip
    assert not any(p.requires_grad for p in strategy.model.parameters())
    before = strategy.score_all(images)
    assert torch.equal(before, zero_shot(images))
    probe = strategy.score_probe(images, ["cat", "dog"], ("a drawing of a {}.",))
    for experience in build_scenario("s", source, tasks=3).benchmark.train_stream:
        strategy.train(experience, eval_streams=[])
    assert list(strategy.selection) == [name]
    for other, value in strategy.model.named_parameters():
        assert other == name or torch.equal(value, zero_shot.get_parameter(other)), other
    assert torch.equal(strategy.model.zero_shot_text_features, zero_shot.text_features())
    assert not torch.equal(strategy.score_all(images), before)
    probed = strategy.score_probe(images, ["cat", "dog"], ("a drawing of a {}.",))
    assert torch.equal(probed, probe) == (host is LinearHead)  # CoOp's words reach every name
    with strategy.model.weights(strategy.zero_shot_point()):
        assert torch.equal(strategy.score_all(images), before)
    with strategy.model.pretrained_weights():
        assert torch.equal(strategy.score_all(images), before)


def test_every_length_ends_with_the_last_word() -> None:
    ids = TOKENIZER.encode("a photo of a")
    for length in (1, 2, 4, 6, 16):
        model = roomy()
        model.add_classes(["cat"])
        learn_context(model, length)
        assert model.context is not None
        expected = [ids[(place - length) % 4] for place in range(length)]
        assert torch.equal(model.context, model.clip.token_embedding.weight[expected])
        prompts = model._tokens[0]
        assert (prompts != 0).sum() == 1 + length + 2 + 1  # start, context, "cat.", end


@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize("length", [4, 16])
def test_classes_before_after_and_of_a_probe_read_the_context(
    custom_text: bool, length: int
) -> None:
    names = ["cat", "red violin", "a {brace}"]
    model = roomy(custom_text)
    model.add_classes(names[:1])
    learn_context(model, length)
    model.add_classes(names[1:2])
    assert model.context is not None
    model.train_only([model.context])
    model.context.data += 0.02 * torch.randn(model.context.shape)
    model.add_classes(names[2:])
    expected = by_hand(model.clip, model.context, names)
    torch.testing.assert_close(model.text_features(), expected)
    torch.testing.assert_close(model.encode_names(names), expected)
    plain = roomy(custom_text)
    plain.add_classes(names)
    # The anchors are zero-shot's, though the last class came after training.
    torch.testing.assert_close(model.zero_shot_text_features, plain.text_features())
    assert (expected - plain.text_features()).abs().max() > 1e-3


def test_a_copy_reads_its_own_context(tiny: Build) -> None:
    model = tiny()
    model.add_classes(["cat", "dog"])
    learn_context(model)
    before = model.text_features()
    other = copy.deepcopy(model)
    assert other.context is not None
    other.context.data *= -1
    assert torch.equal(model.text_features(), before)
    assert not torch.allclose(other.text_features(), before, atol=1e-3)
    other.train_only([other.context])
    other.text_features()[0, 0].backward()
    assert other.context.grad is not None
    assert model.context is not None
    assert model.context.grad is None


def test_many_prompts_give_the_same_gradient_in_parts(
    tiny: Build, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64 open_clip's own tower runs: fp32 is compared with that, whole and in parts."""
    gradients = []
    for tokens, dtype in ((8192, torch.float64), (8192, torch.float32), (8, torch.float32)):
        monkeypatch.setattr("cl_clipfit.clip.encoders.towers.TEXT_PART", tokens)
        model = tiny().to(dtype)
        monkeypatch.setattr(
            model, "preprocess", lambda x, read=model.preprocess, to=dtype: read(x).to(to)
        )
        strategy = middle(KgCoOp(model=model, class_names=source.class_names))
        strategy.training_loss(*batch(source)).backward()
        assert strategy.model.context.grad.dtype == dtype
        gradients.append(strategy.model.context.grad)
    exact, *found = gradients
    assert not torch.equal(*found)  # they are sums of different parts
    for gradient in found:
        assert (gradient - exact).norm() < 2e-6 * exact.norm()


def test_no_hook_stays_behind(tiny: Build) -> None:
    model = tiny()
    model.add_classes(["cat"])
    learn_context(model)
    model.text_features()
    assert not model.clip.token_embedding._forward_hooks


def test_the_distance_to_zero_shot_holds_the_text(tiny: Build, source: Source) -> None:
    moved = []
    for weight in (0.0, 8.0):
        torch.manual_seed(0)
        strategy = KgCoOp(
            model=tiny(), class_names=source.class_names, recipe=Recipe(epochs=6, lr=0.01),
            options=KgCoOpOptions(kd_weight=weight),
        )  # fmt: skip
        for experience in build_scenario("s", source, tasks=3).benchmark.train_stream:
            strategy.train(experience, eval_streams=[])
        now = strategy.model.text_features()
        moved.append(1 - (now * strategy.model.zero_shot_text_features).sum(1).mean().item())
    assert moved[0] > 2 * moved[1] > 0


def test_several_templates_leave_the_first_and_a_warning(tiny: Build) -> None:
    templates = ("a photo of a {}.", "a drawing of a {}.")
    strategy = CoOp(model=tiny(), class_names=["cat", "dog"], templates=templates)
    (warning,) = strategy.warnings
    assert "only the first template: 'a photo of a {}.'" in warning
    single, ensemble = tiny(), tiny()
    single.add_classes(["cat", "dog"])
    ensemble.add_classes(["cat", "dog"], templates)
    torch.testing.assert_close(strategy.model.text_features(), single.text_features())
    torch.testing.assert_close(
        strategy.model.zero_shot_text_features, ensemble.zero_shot_text_features
    )


class OtherTokenizer:
    def __call__(self, texts: list[str]) -> torch.Tensor:
        return TOKENIZER(texts)


def test_what_allows_no_context_is_one_clear_line(tiny: Build) -> None:
    def model(names: list[str], template: str = "a photo of a {}.") -> CLIPClassifier:
        built = tiny()
        built.add_classes(names, (template,))
        return built

    with pytest.raises(UserError, match=r"template '\{\} in a photo' has none"):
        CoOp(model=tiny(), class_names=["cat"], templates=("{} in a photo",))
    with pytest.raises(UserError, match="'cat' does not begin with the words"):
        learn_context(model(["cat"], "a drawing of a {}."))
    with pytest.raises(UserError, match=r"context of 9 .* 'cat' has more than the 12 tokens"):
        learn_context(model(["cat"]), 9)  # start, 9, "cat", ".", end
    learn_context(fits := model(["cat"]), 8)
    with pytest.raises(UserError, match="'red cat' has more than the 12 tokens"):
        fits.add_classes(["dog", "red cat"])
    assert fits.class_names == ["cat"]  # nothing was added
    assert len(fits.zero_shot_text_features) == len(fits._tokens) == 1
    with pytest.raises(UserError, match="already has a learned context"):
        learn_context(fits)
    with pytest.raises(UserError, match="SimpleTokenizer, and this model has OtherTokenizer"):
        learn_context(CLIPClassifier(tiny().clip, OtherTokenizer()))
    odd = tiny()
    odd.clip.text = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match="needs a text tower of open_clip"):
        learn_context(odd)


def test_a_head_needs_all_classes_at_its_start(tiny: Build, source: Source) -> None:
    with pytest.raises(ValueError, match="class_names of the whole stream"):
        LinearHead(model=tiny())
    strategy = LinearHead(model=tiny(), class_names=source.class_names)
    with pytest.raises(ValueError, match="already has a head"):
        LinearHead(model=strategy.model)
    strategy.model.add_classes(["late"])
    with pytest.raises(ValueError, match="some were added later"):
        strategy.select()


def test_no_text_tower_runs_for_a_head(
    tiny: Build, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = LinearHead(
        model=tiny(), class_names=source.class_names, recipe=Recipe(epochs=1, batch_size=8)
    )

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the text tower ran")

    monkeypatch.setattr(strategy.model.clip, "encode_text", refuse)
    stream = build_scenario("s", source, tasks=3).benchmark.train_stream
    strategy.train(stream[0], eval_streams=[])
    assert strategy.score_all(source.test.images).shape == (48, 6)
