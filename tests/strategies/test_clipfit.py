"""CLIPFit and full fine-tuning against the published equations, written out in plain PyTorch."""

import copy
import math
from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg
from torch.optim.optimizer import register_optimizer_step_pre_hook

from cl_clipfit import CLIPClassifier, Recipe, Source, build_scenario
from cl_clipfit.config.command import RunConfig
from cl_clipfit.config.parsing import parse_command
from cl_clipfit.experiment.run_plan import resolve
from cl_clipfit.registry import Registry
from cl_clipfit.strategies.clipfit import PUBLISHED, ClipFit, ClipFitOptions
from cl_clipfit.strategies.full import Full, FullOptions
from cl_clipfit.training.losses import cosine_distance
from cl_clipfit.training.optimization import lr_factor
from tests.support.tiny import TINY_CLIP

Build = Callable[..., CLIPClassifier]
SECOND = [[2, 3], [0, 1, 2, 3]]  # classes of the second of three tasks, and those seen by then


def make(build: Build, source: Source, **options: Any) -> ClipFit:
    """Return CLIPFit in the middle of task 2, whose classes are 2 and 3."""
    strategy = ClipFit(
        model=build(),
        class_names=source.class_names,
        options=ClipFitOptions(**options),
        recipe=Recipe(optimizer="sgd", lr=0.01),
    )
    strategy.task_classes, strategy.seen_classes = [list(classes) for classes in SECOND]
    strategy.selection = strategy.model.train_only(strategy.trainable())
    return strategy


def disturb(model: CLIPClassifier) -> None:
    """Move all selected parameters, as training does."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


class Reference:
    """The published objective on bare open_clip calls: nothing of this package but the tokens."""

    def __init__(self, model: CLIPClassifier, names: list[str]) -> None:
        self.clip = copy.deepcopy(model.clip)
        self.zero_shot = copy.deepcopy(model.clip)
        self.preprocess, self.tokenizer = model.preprocess, model.tokenizer
        self.names = names

    def text(self, clip: Any, classes: list[int]) -> torch.Tensor:
        prompts = self.tokenizer([f"a photo of a {self.names[c]}." for c in classes])
        features = clip.encode_text(prompts)
        return features / features.norm(dim=1, keepdim=True)

    def loss(
        self, images: torch.Tensor, labels: torch.Tensor, ranked: list[int], distilled: list[int],
        weight: float = 8.0, anchor: float = 0.0,
    ) -> torch.Tensor:  # fmt: skip
        pixels = self.preprocess(images)
        image = self.clip.encode_image(pixels)
        image = image / image.norm(dim=1, keepdim=True)
        logits = self.clip.logit_scale.exp() * image @ self.text(self.clip, ranked).T
        targets = torch.tensor([ranked.index(label) for label in labels.tolist()])
        loss = -F.log_softmax(logits, 1)[torch.arange(len(labels)), targets].mean()
        with torch.no_grad():
            anchors = self.text(self.zero_shot, distilled)
            start = self.zero_shot.encode_image(pixels)
        similarity = F.cosine_similarity(self.text(self.clip, distilled), anchors, dim=1, eps=1e-7)
        loss = loss + weight * (1 - similarity.mean())
        return loss + anchor * (1 - F.cosine_similarity(image, start, dim=1).mean())


def batch(source: Source) -> tuple[torch.Tensor, torch.Tensor]:
    own = torch.isin(source.train.labels, torch.tensor(SECOND[0]))
    return source.train.images[own], source.train.labels[own]


SCOPES = [
    ({}, SECOND[0], SECOND[1], {}),
    ({"ce_scope": "seen"}, SECOND[1], SECOND[1], {}),
    ({"kd_scope": "task"}, SECOND[0], SECOND[0], {}),
    ({"ce_scope": "seen", "kd_scope": "task"}, SECOND[1], SECOND[0], {}),
    ({"kd_weight": 2.0}, SECOND[0], SECOND[1], {"weight": 2.0}),
    ({"kd": "none"}, SECOND[0], SECOND[1], {"weight": 0.0}),
    ({"image_anchor": 3.0}, SECOND[0], SECOND[1], {"anchor": 3.0}),
]


@pytest.mark.parametrize(("options", "ranked", "distilled", "weights"), SCOPES)
def test_loss_and_gradients_are_the_published_ones(
    options: dict, ranked: list[int], distilled: list[int], weights: dict, tiny: Build,
    source: Source,
) -> None:  # fmt: skip
    strategy = make(tiny, source, **options)
    reference = Reference(strategy.model, list(source.class_names))
    disturb(strategy.model)
    reference.clip.load_state_dict(strategy.model.clip.state_dict())
    images, labels = batch(source)
    loss = strategy.training_loss(images, labels)
    expected = reference.loss(images, labels, ranked, distilled, **weights)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.backward()
    theirs = {f"clip.{n}": p.grad for n, p in reference.clip.named_parameters()}
    for name, parameter in strategy.model.named_parameters():
        if name in strategy.selection:
            torch.testing.assert_close(parameter.grad, theirs[name], rtol=1e-5, atol=1e-5)
        else:
            assert parameter.grad is None


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_five_steps_over_two_tasks_are_the_published_ones(
    optimizer: str, tiny: Build, source: Source
) -> None:
    scenario = build_scenario("s", source, tasks=3)
    recipe = Recipe(
        epochs=5,
        batch_size=16,
        optimizer=optimizer,
        lr=0.02,
        weight_decay=0.01,
        schedule="constant",
    )
    strategy = ClipFit(
        model=tiny(), class_names=source.class_names, recipe=recipe,
        options=ClipFitOptions(text_lr_scale=3.0),
    )  # fmt: skip
    reference = Reference(strategy.model, list(source.class_names))
    gradients = []  # of every step, by name
    trained = dict(strategy.model.clip.named_parameters())

    def record(*_: Any) -> None:
        gradients.append({n: p.grad.clone() for n, p in trained.items() if p.grad is not None})

    handle = register_optimizer_step_pre_hook(record)
    for experience in list(scenario.benchmark.train_stream)[:2]:
        strategy.train(experience, eval_streams=[])
    handle.remove()
    assert len(gradients) == 10
    parameters = dict(reference.clip.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    names = [
        name
        for name in parameters
        if (name.endswith("mlp.c_proj.bias") and "visual" not in name)
        or (name.startswith("visual.") and ".ln_" in f".{name}")
    ]
    assert len(names) == 2 + 2 * 6
    for name in names:
        parameters[name].requires_grad_(True)
    for task, seen in (([0, 1], [0, 1]), SECOND):
        text = [parameters[n] for n in names if "visual" not in n]
        image = [parameters[n] for n in names if "visual" in n]
        groups: Any = [{"params": text, "lr": 0.06}, {"params": image, "lr": 0.02}]
        kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW
        extra: Any = {"momentum": 0.9} if optimizer == "sgd" else {}
        steps = kind(groups, weight_decay=0.01, **extra)
        own = torch.isin(source.train.labels, torch.tensor(task))
        for _ in range(5):
            steps.zero_grad()
            images, labels = source.train.images[own], source.train.labels[own]
            reference.loss(images, labels, task, seen).backward()
            taken = gradients.pop(0)
            assert set(taken) == set(names)
            for name in names:
                torch.testing.assert_close(parameters[name].grad, taken[name], rtol=1e-5, atol=1e-5)
                # AdamW divides a gradient by its own size: the rounding of one close to zero
                # would be a difference of the weights.
                parameters[name].grad = taken[name]
            steps.step()
    for name, value in trained.items():
        torch.testing.assert_close(value, parameters[name], rtol=1e-6, atol=1e-6)


def test_distillation_and_its_gradient_vanish_at_the_start(tiny: Build, source: Source) -> None:
    strategy = make(tiny, source, kd_weight=1.0, image_anchor=1.0)
    images, labels = batch(source)
    biases = [p for n, p in strategy.selection.items() if "visual" not in n]
    loss = strategy.training_loss(images, labels)
    ours = torch.autograd.grad(loss, list(strategy.selection.values()), retain_graph=True)
    bare = make(tiny, source, kd="none")
    plain = bare.training_loss(images, labels)
    without = torch.autograd.grad(plain, list(bare.selection.values()))
    assert abs((loss - plain).item()) <= 1e-6
    for one, other in zip(ours, without, strict=True):
        assert (one - other).abs().max() <= 1e-6
    text, anchors = strategy.distillation.features_and_anchors()
    distance = cosine_distance(text, anchors)
    assert abs(distance.item()) <= 1e-6
    assert all(g.abs().max() <= 1e-6 for g in torch.autograd.grad(distance, biases))


def test_mse_is_the_mean_over_layers_of_the_squared_change(tiny: Build, source: Source) -> None:
    strategy = make(tiny, source, kd="mse", kd_weight=1.0)
    images, labels = batch(source)
    start = {n: p.detach().clone() for n, p in strategy.selection.items()}
    disturb(strategy.model)
    bare = make(tiny, source, kd="none")
    bare.model.load_state_dict(strategy.model.state_dict())
    added = strategy.training_loss(images, labels) - bare.training_loss(images, labels)
    moved = [
        sum((value - was) ** 2 for value, was in zip(p.tolist(), start[n].tolist(), strict=True))
        for n, p in strategy.selection.items()
        if "visual" not in n
    ]
    assert added.item() == pytest.approx(sum(moved) / 2, rel=1e-4)


def test_mse_over_all_biases_is_still_a_mean_over_layers(tiny: Build, source: Source) -> None:
    strategy = make(tiny, source, kd="mse", kd_weight=1.0, text_biases="all")
    disturb(strategy.model)
    start = strategy.model.pretrained_values
    layers: dict[str, float] = {}
    for name, value in strategy.selection.items():
        if "visual" not in name:
            parts = name.split(".")
            layer = parts[parts.index("resblocks") + 1] if "resblocks" in parts else "ln_final"
            squares = (value.detach() - start[name]).square().sum().item()
            layers[layer] = layers.get(layer, 0) + squares
    assert set(layers) == {"0", "1", "ln_final"}
    expected = sum(layers.values()) / 3
    assert strategy._bias_change().item() == pytest.approx(expected, rel=1e-5)


def test_options_are_optional_in_plain_avalanche_code(tiny: Build, source: Source) -> None:
    strategy = ClipFit(model=tiny(), class_names=source.class_names)
    assert strategy.options == ClipFitOptions()
    strategy.train(build_scenario("s", source, tasks=2).benchmark.train_stream[0])


def test_many_prompts_give_the_same_gradients_in_parts(
    tiny: Build, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = []
    for tokens in (8192, 8):
        monkeypatch.setattr("cl_clipfit.clip.encoders.towers.TEXT_PART", tokens)
        strategy = make(tiny, source)
        disturb(strategy.model)
        loss = strategy.training_loss(*batch(source))
        gradients.append(torch.autograd.grad(loss, list(strategy.selection.values())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_vocabulary_is_distilled_without_images(tiny: Build, source: Source) -> None:
    words = ("violin", "harbour", "lemon")
    strategy = make(tiny, source, kd_scope="seen+vocabulary", vocabulary=words)
    reference = Reference(strategy.model, [*source.class_names, *words])
    disturb(strategy.model)
    reference.clip.load_state_dict(strategy.model.clip.state_dict())
    images, labels = batch(source)
    last = len(source.class_names)
    expected = reference.loss(
        images, labels, SECOND[0], [*SECOND[1], *range(last, last + len(words))]
    )
    torch.testing.assert_close(strategy.training_loss(images, labels), expected)


def test_distillation_holds_the_text_features(tiny: Build, source: Source) -> None:
    """The stronger it is, the less they move."""
    moved = []
    for weight in (0.0, 8.0, 64.0):
        torch.manual_seed(0)
        strategy = ClipFit(
            model=tiny(), class_names=source.class_names, recipe=Recipe(epochs=6, lr=0.02),
            options=ClipFitOptions(kd_weight=weight, text_lr_scale=3.0),
        )  # fmt: skip
        for experience in build_scenario("s", source, tasks=3).benchmark.train_stream:
            strategy.train(experience, eval_streams=[])
        model = strategy.model
        now = model.text_features()
        moved.append(1 - (now * model.zero_shot_text_features).sum(1).mean().item())
    assert moved[0] > 5 * moved[1]
    assert moved[1] > moved[2] >= 0


def test_full_trains_all_but_the_scale_over_the_classes_seen(tiny: Build, source: Source) -> None:
    for scope, ranked in (("seen", SECOND[1]), ("task", SECOND[0])):
        strategy = Full(
            model=tiny(), class_names=source.class_names, options=FullOptions(ce_scope=scope)
        )
        strategy.task_classes, strategy.seen_classes = [list(classes) for classes in SECOND]
        strategy.selection = strategy.model.train_only(strategy.trainable())
        reference = Reference(strategy.model, list(source.class_names))
        disturb(strategy.model)
        reference.clip.load_state_dict(strategy.model.clip.state_dict())
        images, labels = batch(source)
        expected = reference.loss(images, labels, ranked, ranked, weight=0.0)
        torch.testing.assert_close(strategy.training_loss(images, labels), expected)
        everything = {name for name, _ in strategy.model.named_parameters()}
        assert set(strategy.selection) == everything - {"clip.logit_scale"}


def test_a_resnet_trains_text_biases_alone_and_says_so(source: Source) -> None:
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}
    clip = open_clip.CLIP(**{**TINY_CLIP, "vision_cfg": vision})
    open_clip.set_model_preprocess_cfg(clip, {**PreprocessCfg().__dict__, "size": 32})
    model = CLIPClassifier(clip, open_clip.SimpleTokenizer(context_length=12))
    strategy = ClipFit(model=model, class_names=source.class_names, recipe=Recipe(epochs=1))
    strategy.train(build_scenario("s", source, tasks=3).benchmark.train_stream, eval_streams=[])
    assert list(strategy.selection) == [
        f"clip.transformer.resblocks.{block}.mlp.c_proj.bias" for block in (0, 1)
    ]
    (warning,) = strategy.warnings  # once, though three tasks were learned
    assert "only text biases train" in warning


def published_lr(epoch: int) -> float:
    """The released configuration: 1e-5 in the first epoch, then a cosine of period 100."""
    return 1e-5 if epoch == 0 else 1e-3 * (1 + math.cos(math.pi * (epoch - 1) / 100))


def test_the_published_recipe_is_the_papers() -> None:
    config = RunConfig(strategy=["clipfit"], recipe="published")
    registry = Registry()
    (plan,) = resolve(parse_command(config), registry).plans
    recipe = plan.recipe
    assert recipe is not None
    assert (recipe.optimizer, recipe.momentum, recipe.weight_decay) == ("sgd", 0.9, 5e-4)
    assert (recipe.batch_size, recipe.epochs, recipe.augmentation) == (32, 100, "crop-flip")
    assert (recipe.crop_scale, recipe.drop_last) == (0.08, True)
    assert (plan.options.kd_weight, plan.options.text_lr_scale) == (8.0, 1.0)
    for step in range(0, 700):
        lr = recipe.lr * lr_factor(recipe, step, epoch_steps=7)
        assert lr == pytest.approx(published_lr(step // 7))
    left_to_defaults = {"text_layers", "image_layers", "vocabulary"}
    fields = {*Recipe.model_fields, *ClipFitOptions.model_fields}
    assert set(PUBLISHED) == fields - left_to_defaults
    defaults = ClipFitOptions().model_dump()
    assert all(defaults[key] == PUBLISHED[key] for key in PUBLISHED if key in defaults)


def test_the_optimiser_follows_the_schedule_in_every_group(tiny: Build, source: Source) -> None:
    seen: list[list[float]] = []

    class Watched(ClipFit):
        def after_step(self) -> None:
            seen.append([group["lr"] for group in self.optimizer.param_groups])

    recipe = Recipe(epochs=3, batch_size=8, lr=0.1, warmup_epochs=1, warmup_lr=0.01)
    strategy = Watched(
        model=tiny(), class_names=source.class_names, recipe=recipe,
        options=ClipFitOptions(text_lr_scale=2.0),
    )  # fmt: skip
    strategy.train(build_scenario("s", source, tasks=3).benchmark.train_stream[0])
    # two steps an epoch; what is seen after a step is what the next one uses
    expected = [0.01, *(0.05 * (1 + math.cos(math.pi * s / 4)) for s in range(5))]
    assert [image for _, image in seen] == pytest.approx(expected)
    assert [text for text, _ in seen] == pytest.approx([2 * lr for lr in expected])
