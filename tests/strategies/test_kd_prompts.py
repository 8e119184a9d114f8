"""Distilling a sample of the prompts: the same mean, at a cost that does not grow."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import growth
from cl_clipfit import CLIPClassifier, CLIPStrategy, Recipe, Source, build_scenario
from cl_clipfit.methods import text_distillation
from cl_clipfit.methods.text_distillation import PromptSample, draw_positions, sample_prompts
from cl_clipfit.strategies.clipfit import ClipFit, ClipFitOptions
from cl_clipfit.strategies.kgcoop import KgCoOp, KgCoOpOptions
from cl_clipfit.strategies.mergetune import MergeTune, MergeTuneOptions
from cl_clipfit.training.loop import StepCallback
from tests.support.tiny import build_source

Build = Callable[..., CLIPClassifier]
WORDS = ("violin", "harbour")
METHODS: dict[str, tuple[type[CLIPStrategy], Any, dict[str, Any]]] = {
    "clipfit": (ClipFit, ClipFitOptions, {}),
    "words": (ClipFit, ClipFitOptions, {"kd_scope": "seen+vocabulary", "vocabulary": WORDS}),
    "seen": (
        ClipFit, ClipFitOptions,
        {"ce_scope": "seen", "kd_scope": "seen+vocabulary", "vocabulary": WORDS},
    ),
    "kgcoop": (KgCoOp, KgCoOpOptions, {}),
}  # fmt: skip


def make(method: str, build: Build, source: Source, **options: Any) -> Any:
    """Return a strategy with the method's settings and these."""
    kind, settings, own = METHODS[method]
    return kind(
        model=build(), class_names=source.class_names, options=settings(**own, **options),
        recipe=Recipe(optimizer="sgd", lr=0.02, epochs=2, batch_size=8),
    )  # fmt: skip


def in_last_task(strategy: Any, source: Source) -> tuple[torch.Tensor, torch.Tensor]:
    """Put a strategy into the last task, of two classes, with moved weights; return a batch."""
    classes = len(source.class_names)
    strategy.seen_classes = list(range(classes))
    strategy.task_classes = strategy.seen_classes[-2:]
    strategy.select()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in strategy.selection.values():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    own = source.train.labels >= classes - 2
    return source.train.images[own], source.train.labels[own]


def learn(strategy: Any, source: Source, tasks: int = 3) -> list[float]:
    """Train on a stream; return the loss of every step."""
    losses: list[float] = []
    strategy.plugins.append(StepCallback(lambda s: losses.append(s.loss.item())))
    stream = build_scenario("s", source, tasks=tasks).benchmark.train_stream
    strategy.train(stream, eval_streams=[])
    return losses


def watch_prompts(model: CLIPClassifier) -> list[int]:
    """Return a list that gets the number of names of every pass of the text tower."""
    encode, counts = model.encode_prompts, []

    def counting(tokens: Sequence[torch.Tensor], normalize: bool = True) -> torch.Tensor:
        counts.append(len(tokens))
        return encode(tokens, normalize)

    vars(model)["encode_prompts"] = counting
    return counts


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_estimate_is_unbiased_over_all_subsets(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(6, 5, generator=generator, dtype=torch.float64).requires_grad_()
    anchors = F.normalize(torch.randn(6, 5, generator=generator, dtype=torch.float64), dim=1)
    whole = (1 - F.cosine_similarity(raw, anchors, dim=1)).mean()
    estimates = []
    for drawn in combinations(range(2, 6), count):
        rows = [0, 1, *drawn]
        sample = PromptSample(rows, [], certain=2, drawn_from=4)
        estimates.append(sample.distance(F.normalize(raw[rows], dim=1), anchors[rows]))
    mean = torch.stack(estimates).mean()
    torch.testing.assert_close(mean, whole, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(x, raw)[0] for x in (mean, whole)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)
    assert max(estimates) - min(estimates) > 0.01  # or there would be nothing to average


@pytest.mark.parametrize("method", list(METHODS))
def test_loss_and_gradients_of_a_step_are_unbiased(
    method: str, tiny: Build, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make(method, tiny, source)
    images, labels = in_last_task(plain, source)
    expected = plain.training_loss(images, labels)
    parameters = list(plain.selection.values())
    gradients = torch.autograd.grad(expected, parameters, allow_unused=True)
    others = {"clipfit": 4, "words": 6, "seen": 2, "kgcoop": 4}[method]
    strategy = make(method, tiny, source, kd_prompts=min(2, others - 1))
    in_last_task(strategy, source)
    subsets = list(combinations(range(others), min(2, others - 1)))
    turns = iter(subsets)

    def positions(count: int, total: int, generator: torch.Generator) -> list[int]:
        assert (count, total) == (len(subsets[0]), others)
        return list(next(turns))

    monkeypatch.setattr(text_distillation, "draw_positions", positions)
    losses = [strategy.training_loss(images, labels) for _ in subsets]
    mean = torch.stack(losses).mean()
    torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-6)
    assert max(losses) - min(losses) > 1e-4
    found = torch.autograd.grad(mean, list(strategy.selection.values()), allow_unused=True)
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_every_subset_is_drawn_alike() -> None:
    generator = torch.Generator().manual_seed(3)
    counts = Counter(
        (tuple(s.classes), tuple(s.names))
        for s in (sample_prompts([3], [1, 2, 3], 2, 2, generator) for _ in range(6000))
    )
    assert len(counts) == 6
    assert all(classes[0] == 3 for classes, _ in counts)
    # A binomial of 6,000 and 1/6: mean 1,000, standard deviation 29.
    assert all(abs(count - 1000) < 5 * 29 for count in counts.values())


@pytest.mark.parametrize("method", list(METHODS))
def test_a_limit_that_covers_all_changes_nothing(method: str, tiny: Build, source: Source) -> None:
    runs = []
    for options in ({}, {"kd_prompts": 6}):
        torch.manual_seed(0)
        strategy = make(method, tiny, source, **options)
        runs.append((learn(strategy, source), strategy.selection))
    (losses, weights), (same, equal) = runs
    assert losses == same
    assert len(losses) == 12
    assert all(torch.equal(value, equal[name]) for name, value in weights.items())


@pytest.mark.parametrize("method", list(METHODS))
def test_a_run_repeats_itself_and_draws_do_not_move_the_data(
    method: str, tiny: Build, source: Source
) -> None:
    found = []
    for options in ({}, {"kd_prompts": 1}, {"kd_prompts": 1}):
        torch.manual_seed(0)
        strategy = make(method, tiny, source, **options)
        found.append((learn(strategy, source), torch.get_rng_state().tolist()))
    (losses, state), (sampled, after), again = found
    assert (sampled, after) == again
    assert sampled != losses
    assert after == state


REFUSED = [
    (ClipFitOptions, {"kd_scope": "task"}, "kd_scope=task"),
    (ClipFitOptions, {"ce_scope": "seen"}, "ce_scope=seen"),
    (ClipFitOptions, {"kd": "none"}, "kd=cosine"),
    (ClipFitOptions, {"kd": "mse"}, "kd=cosine"),
    (ClipFitOptions, {"kd_weight": 0}, "kd_weight above 0"),
    (ClipFitOptions, {"text_biases": "none"}, "text_biases=none"),
    (ClipFitOptions, {"kd_prompts": 0}, "greater than or equal to 1"),
    (KgCoOpOptions, {"kd_scope": "task"}, "kd_scope=seen"),
    (KgCoOpOptions, {"ce_scope": "seen"}, "ce_scope=task"),
    (KgCoOpOptions, {"kd_weight": 0}, "kd_weight above 0"),
]


@pytest.mark.parametrize(("kind", "options", "words"), REFUSED)
def test_what_would_have_no_effect_is_refused(kind: Any, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kind(**{"kd_prompts": 2, **options})
    if "kd_prompts" not in options:
        kind(**options)  # it is the combination


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("clipfit", {}, [2, 4, 6, 8, 10, 12]),
        ("clipfit", {"kd_scope": "task"}, [2] * 6),
        ("clipfit", {"kd_prompts": 3}, [2, 4, 5, 5, 5, 5]),
        ("kgcoop", {"kd_prompts": 3}, [2, 4, 5, 5, 5, 5]),
        ("words", {}, [4, 6, 8, 10, 12, 14]),
        ("words", {"kd_prompts": 2}, [4] * 6),
        ("seen", {"kd_prompts": 1}, [3, 5, 7, 9, 11, 13]),
    ],
)
def test_a_step_encodes_its_prompts_at_once_and_no_more(
    method: str, options: dict, expected: list[int], tiny: Build
) -> None:
    source = build_source(classes=12, per_class=4)
    strategy = make(method, tiny, source, **options)
    if method in ("words", "seen"):
        strategy.distillation.encode_vocabulary()  # once, before the first step
    counts = watch_prompts(strategy.model)
    learn(strategy, source, tasks=6)
    assert counts == [count for count in expected for _ in range(2)]


class _Operations(TorchDispatchMode):
    """Keeps name and shapes of every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        shapes = [tuple(a.shape) for a in args if isinstance(a, torch.Tensor)]
        self.seen.append((str(func), shapes, getattr(found, "shape", None)))
        return found


@pytest.mark.parametrize(("scope", "alike"), [("task", True), ("seen", False)])
def test_no_operation_of_a_step_depends_on_the_earlier_tasks(
    scope: str, alike: bool, tiny: Build
) -> None:
    source = build_source(classes=12, per_class=4)
    strategy = make("clipfit", tiny, source, kd_scope=scope)
    images, labels = in_last_task(strategy, source)
    found = []
    for before in (0, 4, 10):
        strategy.seen_classes = [*range(before), 10, 11]
        strategy.training_loss(images, labels).backward()  # what is kept from then on
        with _Operations() as operations:
            strategy.training_loss(images, labels).backward()
        found.append(operations.seen)
    assert len(found[0]) > 100
    assert (found[0] == found[1] == found[2]) is alike


def test_a_read_out_leaves_the_draws_of_its_host_as_they_are(tiny: Build, source: Source) -> None:
    options = ClipFitOptions(kd_prompts=1)
    recipe = Recipe(optimizer="sgd", lr=0.02, epochs=2, batch_size=8)
    torch.manual_seed(0)
    host = make("clipfit", tiny, source, kd_prompts=1)
    learn(host, source)
    torch.manual_seed(0)
    both = MergeTune.over(ClipFit)(
        model=tiny(), class_names=source.class_names, recipe=recipe, host_options=options,
        options=MergeTuneOptions(trajectory="read-out", metric="fisher", landscape="off"),
    )  # fmt: skip
    learn(both, source)
    assert both._trajectory is not None
    for name, value in host.selection.items():
        torch.testing.assert_close(both._trajectory[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("space", ["weights", "text-features"])
def test_every_pass_of_a_second_stage_draws(
    space: str, tiny: Build, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy: Any = MergeTune.over(ClipFit)(
        model=tiny(), class_names=source.class_names,
        recipe=Recipe(optimizer="sgd", lr=0.02, epochs=1, batch_size=16),
        host_options=ClipFitOptions(kd_prompts=1),
        options=MergeTuneOptions(space=space, alpha="grid-2", landscape="off", merge_epochs=1),
    )  # fmt: skip
    draws: list[bool] = []

    def positions(count: int, total: int, generator: torch.Generator) -> list[int]:
        draws.append(strategy.second_stage is not None)
        return draw_positions(count, total, generator)

    monkeypatch.setattr(text_distillation, "draw_positions", positions)
    losses = learn(strategy, source)
    assert all(torch.tensor(losses).isfinite())
    # Two tasks after the first, a step each: the host's, and the second stage's with its points.
    assert draws == [False, *[True] * (3 if space == "weights" else 1)] * 2


def test_the_vocabulary_is_there_where_the_text_of_the_classes_is_not_encoded_again(
    tiny: Build, source: Source
) -> None:
    strategy = make("words", tiny, source)
    images, labels = in_last_task(strategy, source)
    expected = strategy.training_loss(images, labels).item()
    with torch.no_grad():
        known = strategy.model.text_features(strategy.seen_classes, normalize=False)
        vars(strategy.model)["text_features"] = lambda classes, normalize: known
        assert strategy.training_loss(images, labels).item() == pytest.approx(expected, rel=1e-5)


def test_prompts_along_are_encoded_in_one_pass_and_leave_no_trace(
    tiny: Build, source: Source
) -> None:
    model = tiny()
    model.add_classes(source.class_names)
    model.train_only([model.clip.transformer.resblocks[0].mlp.c_proj.bias])  # a frozen text is kept
    words = model.tokenize(WORDS)
    expected = model.text_features([1, 4]), model.encode_prompts(words)
    counts = watch_prompts(model)
    watched = model.encode_prompts
    with pytest.raises(ZeroDivisionError), model.encoding_along(words) as found:
        text = model.text_features([1, 4])
        raise ZeroDivisionError
    assert counts == [4]
    torch.testing.assert_close((text, F.normalize(found[0], dim=1)), expected)
    assert model.encode_prompts is watched


def test_growth_is_measured(capsys: pytest.CaptureFixture) -> None:
    sizes = ["--tasks", "1", "2", "4", "--classes-per-task", "3", "--kd-prompts", "2"]
    growth.main(["--model", "mini", *sizes, "--batch-size", "2", "--repeats", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["prompts"] == {"task": [3, 3, 3], "seen": [3, 6, 12], "kd_prompts": [3, 5, 5]}
    assert all(value > 0 for own in found["seconds"].values() for value in own)
    assert set(found["last_over_first"]) == {"task", "kd_prompts"}
    with pytest.raises(SystemExit):
        growth.main(["--model", "mini", "--tasks", "4", "1"])
    assert "--tasks" in capsys.readouterr().err


def test_growth_is_summarised() -> None:
    prompts = {"task": [2, 2, 2], "seen": [2, 4, 6], "kd_prompts": [2, 3, 3]}
    seconds = {"task": [1.0, 9.0, 2.0], "seen": [1.0, 1.5, 2.0], "kd_prompts": [1.0, 2.0, 3.0]}
    assert growth.summarise(prompts, seconds) == {
        "milliseconds_per_prompt": pytest.approx(250.0),
        "last_over_first": {"task": 2.0, "kd_prompts": 3.0},
        "last_over_first_full": {"task": 2.0, "kd_prompts": 1.5},
    }
