"""Steps that run out of memory, and steps that must not wait for their device."""

import random
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from cl_clipfit import CLIPClassifier, CLIPStrategy, Recipe, Source, build_scenario
from cl_clipfit.cli.app import main
from cl_clipfit.config.command import read_config
from cl_clipfit.errors import UserError
from cl_clipfit.registry import Registry
from cl_clipfit.runtime.out_of_memory import in_batches, out_of_memory
from cl_clipfit.runtime.rng import rng_state, set_rng_state
from cl_clipfit.strategies.clipfit import ClipFit
from cl_clipfit.strategies.full import Full
from cl_clipfit.strategies.kgcoop import KgCoOp, KgCoOpOptions
from cl_clipfit.strategies.mergetune import MergeTune, MergeTuneOptions
from cl_clipfit.training.features import keep_columns, label_index
from cl_clipfit.training.loop import StepCallback
from cl_clipfit.training.optimization import make_optimizer
from tests.support.methods import TwoGroups
from tests.support.tiny import TRAINED

Build = Callable[..., CLIPClassifier]
RECIPE = Recipe(epochs=2, batch_size=8, lr=0.05, optimizer="sgd")
STRATEGIES = [entry.name for entry in Registry([Path("examples/image_norms.py")]).entries(
    "strategies") if entry.name != "zero-shot"]  # fmt: skip


def make(cls: type[CLIPStrategy], build: Build, source: Source, **kwargs: Any) -> CLIPStrategy:
    torch.manual_seed(3)
    if cls is MergeTune:
        cls = MergeTune.over(ClipFit)
        kwargs.setdefault("options", MergeTuneOptions(landscape="off"))
    return cls(**{"model": build(), "class_names": source.class_names, "recipe": RECIPE, **kwargs})


def losses(strategy: CLIPStrategy, source: Source, tasks: int = 2) -> list[float]:
    """Train and return the loss of every step."""
    found: list[float] = []
    strategy.plugins.append(StepCallback(lambda s: found.append(s.loss.item())))
    torch.manual_seed(3)
    for experience in build_scenario("s", source, tasks=3).benchmark.train_stream[:tasks]:
        strategy.train(experience, eval_streams=[])
    return found


def limit(model: Any, room: int, when: str = "forward") -> list[int]:
    """Let no more than `room` images hold activations at once; return how many did."""
    encode, held = model.image_features, []

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    def image_features(images: Tensor) -> Tensor:
        pieces = (model.micro_batch or len(images)) if torch.is_grad_enabled() else len(images)
        at_once = min(pieces, len(images))
        if at_once > room and when == "forward":
            fail()
        features = encode(images)
        if at_once > room and features.requires_grad:
            features.register_hook(fail)
        held.append(at_once)
        return features

    model.image_features = image_features
    return held


@pytest.mark.parametrize("when", ["forward", "backward"])
@pytest.mark.parametrize("cls", [TwoGroups, Full, ClipFit, MergeTune])
def test_a_step_that_runs_out_of_memory_is_repeated_as_if_nothing_had_been(
    cls: type[CLIPStrategy], when: str, tiny: Build, source: Source
) -> None:
    recipe = RECIPE.model_copy(update={"augmentation": "crop-flip"})
    undisturbed = make(cls, tiny, source, recipe=recipe)
    expected = losses(undisturbed, source)
    strategy = make(cls, tiny, source, recipe=recipe)
    held = limit(strategy.model, 3, when)
    assert losses(strategy, source) == pytest.approx(expected, abs=1e-5)
    assert strategy.model.micro_batch == 2
    assert strategy.warnings == ["out of memory: 2 images at a time from now on"]
    assert set(held[-4:]) == {2}
    for name, value in strategy.selection.items():
        torch.testing.assert_close(value, undisturbed.selection[name], atol=1e-5, rtol=1e-5)
    inside = {id(p) for group in strategy.optimizer.param_groups for p in group["params"]}
    assert inside == {id(p) for p in strategy.selection.values()}


class Noisy(TwoGroups):
    """Draws from every kind of generator in its loss, and fails in some steps afterwards."""

    failing: tuple[int, ...] = ()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.own = torch.Generator().manual_seed(5)
        self.drawn: list[tuple[float, ...]] = []

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        u = (float(torch.rand(())), float(torch.rand((), generator=self.own)),
             float(torch.rand((), generator=self.augmentation_draws)),
             random.random(), float(np.random.rand()))  # fmt: skip
        self.drawn.append(u)
        return super().compute_loss(logits, labels) * (1 + sum(u))

    def add_gradients(self) -> None:
        if len(self.drawn) in self.failing:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")


def test_a_repeated_step_draws_the_same(tiny: Build, source: Source) -> None:
    def run(*failing: int) -> tuple[list[tuple[float, ...]], list[float]]:
        random.seed(1)
        np.random.seed(1)
        strategy = make(Noisy, tiny, source)
        strategy.failing = failing
        return strategy.drawn, losses(strategy, source)

    drawn, expected = run()
    again, found = run(3, 7, 8)
    assert found == pytest.approx(expected, abs=1e-5)
    assert again[2] == again[3] == drawn[2]
    assert again[6] == again[7] == again[8] == drawn[5]
    assert len(set(drawn)) == len(drawn) == len(again) - 3


@pytest.mark.parametrize("call", [5, 6])
def test_the_points_of_a_line_are_the_same_when_one_of_them_fails(
    call: int, tiny: Build, source: Source
) -> None:
    """Draws of alpha, weights put in place for a pass, and gradients that were added before."""

    def run(failing: int) -> tuple[list[float], int]:
        strategy = make(MergeTune, tiny, source)
        encode, calls = strategy.model.image_features, []

        def image_features(images: Tensor) -> Tensor:
            calls.append(len(images))
            if len(calls) == failing:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return encode(images)

        strategy.model.image_features = image_features
        return losses(strategy, source), len(calls)

    expected, calls = run(0)
    found, more = run(call)
    assert found == pytest.approx(expected, abs=1e-5)
    assert more == calls + {5: 1, 6: 2}[call]  # a step's own pass, or that of its point too


def test_generators_within_an_attribute_are_found(tiny: Build, source: Source) -> None:
    options = KgCoOpOptions(kd_prompts=1)
    strategy = make(KgCoOp, tiny, source, options=options)
    state = rng_state(strategy, strategy.device)
    generator = strategy.distillation.generator
    first = torch.rand(3, generator=generator).tolist()
    set_rng_state(strategy, state, strategy.device)
    assert torch.rand(3, generator=generator).tolist() == first
    assert torch.rand(3, generator=generator).tolist() != first


def test_a_micro_batch_that_was_given_is_kept(tiny: Build, source: Source) -> None:
    model = tiny()
    model.micro_batch = 5
    strategy = make(TwoGroups, tiny, source, model=model)
    held = limit(model, 6)
    losses(strategy, source)
    assert set(held) == {5}
    assert model.micro_batch == 5 and not strategy.warnings
    limit(model, 4)
    with pytest.raises(UserError, match="out of memory with --micro-batch 5: give a smaller one"):
        losses(strategy, source)


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_no_memory_for_one_image_is_said(when: str, tiny: Build, source: Source) -> None:
    strategy = make(TwoGroups, tiny, source)
    limit(strategy.model, 0, when)
    with pytest.raises(UserError, match="in training, with one image at a time: a smaller model"):
        losses(strategy, source)


def test_other_errors_pass(tiny: Build, source: Source) -> None:
    class Broken(TwoGroups):
        def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
            raise RuntimeError("the shapes do not match")

    strategy = make(Broken, tiny, source)
    with pytest.raises(RuntimeError, match="the shapes do not match"):
        losses(strategy, source)
    assert strategy.model.micro_batch is None
    assert not out_of_memory(ValueError("out of memory"))
    assert out_of_memory(RuntimeError("[enforce fail] not enough memory: you tried to allocate"))


def test_evaluation_goes_on_with_smaller_batches(tiny: Build, source: Source) -> None:
    scenario = build_scenario("s", source, tasks=3)
    strategy = make(TwoGroups, tiny, source, eval_mb_size=20)
    images, names = source.test.images, source.class_names
    expected = strategy.score_all(images)
    probe = strategy.score_probe(images, names, source.templates)
    measured = strategy.eval(scenario.benchmark.test_stream)
    held = limit(strategy.model, 6)
    torch.testing.assert_close(strategy.score_all(images), expected)
    torch.testing.assert_close(strategy.score_probe(images, names, source.templates), probe)
    assert held == [5] * 9 + [3] + [5] * 9 + [3]
    assert strategy.warnings == ["out of memory in evaluation: 5 images at a time from now on"]
    strategy.eval_mb_size = 20
    assert strategy.eval(scenario.benchmark.test_stream) == measured
    assert strategy.eval_mb_size < 7
    limit(strategy.model, 0)
    with pytest.raises(UserError, match="out of memory with one image at a time"):
        strategy.score_all(images)


def test_batches_are_those_of_split_while_memory_lasts() -> None:
    images, seen = torch.arange(10.0)[:, None], []

    def function(batch: Tensor) -> Tensor:
        seen.append(len(batch))
        if len(seen) == 2:
            raise torch.OutOfMemoryError
        return 2 * batch

    found, size = in_batches(function, images, torch.device("cpu"), 4)
    assert torch.equal(found, 2 * images)
    assert (seen, size) == ([4, 4, 2, 2, 2], 2)


class Events(SupervisedPlugin):
    """Writes down every event of training."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        for name in dir(SupervisedPlugin):
            if name.startswith(("before_", "after_")):
                setattr(self, name, lambda *_, name=name, **__: self.seen.append(name))


def test_the_events_are_avalanches_own_also_where_a_step_is_repeated(
    tiny: Build, source: Source
) -> None:
    stream = build_scenario("s", source, tasks=3).benchmark.train_stream[:2]
    theirs, ours, repeated = Events(), Events(), Events()
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 6))
    floats = nn.Sequential(linear)
    floats.forward = lambda x: linear(x.float())
    optimizer = torch.optim.SGD(floats.parameters(), 1e-9)
    naive = Naive(
        model=floats, optimizer=optimizer, train_mb_size=8, train_epochs=2, plugins=[theirs]
    )
    for experience in stream:
        naive.train(experience, eval_streams=[])
    losses(make(TwoGroups, tiny, source, plugins=[ours]), source)
    assert ours.seen == theirs.seen
    strategy = make(TwoGroups, tiny, source, plugins=[repeated])
    limit(strategy.model, 4, "backward")
    losses(strategy, source)
    at = ours.seen.index("after_backward")
    passes = ["after_forward", "before_backward"]
    assert repeated.seen == [*ours.seen[:at], *passes, *ours.seen[at:]]


# ---- a step does not wait for its device -----------------------------------------------------

READS = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "numpy", "cpu",
         "nonzero", "unique", "masked_select"}  # fmt: skip
WAITS = ("aten._local_scalar_dense", "aten.item", "aten.nonzero", "aten.is_nonzero", "aten.equal.")


def from_list(index: Any) -> bool:
    """Return whether an index is a list, or chosen by a mask: both read or write from the host."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(p, list) or getattr(p, "dtype", None) == torch.bool for p in parts)


MEASURING = {"wrong_pairs"}  # of mg-clip: once per epoch of the first task


class Waits(TorchFunctionMode):
    """Writes down what would wait for a GPU: values read, and values sent from Python.

    Tensors that a step makes of lists, or draws by a generator on the CPU, would not be on the GPU:
    to read them is no wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.host: list[Tensor] = []  # made in the step, never sent to a device
        self.below = Operators(self)

    def __enter__(self) -> "Waits":
        super().__enter__()
        self.below.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.below.__exit__(*error)
        super().__exit__(*error)

    def note(self, what: str) -> None:
        frames = [f for f in traceback.extract_stack() if "/cl_clipfit/" in f.filename
                  or "/strategies/" in f.filename or "/examples/" in f.filename]  # fmt: skip
        if any(frame.name in MEASURING for frame in frames):
            return
        self.found.append(f"{what} at {Path(frames[-1].filename).name}:{frames[-1].lineno}")

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        own = bool(args) and any(args[0] is tensor for tensor in self.host)
        made = name in ("tensor", "as_tensor") and isinstance(args[0], (list, tuple))
        waits = (
            (name in READS and not own)
            or (name in ("__getitem__", "__setitem__") and from_list(args[1]) and not own)
            or (made and kwargs.get("device") is not None)
            or (name == "to" and own and not kwargs.get("non_blocking"))
        )
        if waits:
            self.note(name)
        below, self.below.quiet = self.below.quiet, own or self.below.quiet
        result = function(*args, **kwargs)
        self.below.quiet = below
        if isinstance(result, Tensor) and (
            made or kwargs.get("generator") or (own and name != "to")
        ):
            self.host.append(result)
        return result


class Operators(TorchDispatchMode):
    """Writes down operators that wait, also those within PyTorch's own functions."""

    def __init__(self, above: Waits) -> None:
        super().__init__()
        self.above, self.quiet = above, False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        if str(function).startswith(WAITS) and not self.quiet:
            self.above.note(str(function))
        return function(*args, **(kwargs or {}))


class Watch(SupervisedPlugin):
    """Watches every step but the first of a task and of its second stage."""

    def __init__(self) -> None:
        super().__init__()
        self.warm: set[Any] = set()
        self.found: list[str] = []
        self.watched = 0
        self.mode: Waits | None = None

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        stage = strategy.tasks_seen, getattr(strategy, "second_stage", None) is None
        if stage in self.warm:
            self.mode = Waits()
            self.mode.__enter__()
        self.warm.add(stage)

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        if self.mode is not None:
            self.mode.__exit__(None, None, None)
            self.found += self.mode.found
            self.watched += 1
        self.mode = None


def fused(recipe: Recipe, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Build the optimiser as on CUDA; that of CPUs reads its own counters."""
    optimizer = make_optimizer(recipe, groups)
    for group in optimizer.param_groups:
        group["fused"] = True
    return optimizer


def watch(cls: type[CLIPStrategy], build: Build, source: Source, **kwargs: Any) -> Watch:
    plugin = Watch()
    recipe = Recipe(epochs=2, batch_size=8)
    losses(make(cls, build, source, recipe=recipe, plugins=[plugin], **kwargs), source)
    return plugin


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_warm_step_waits_for_no_device(
    name: str, tiny: Build, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cl_clipfit.training.loop.make_optimizer", fused)
    # On a CPU the loss is at hand; tests/test_divergence.py shows how a GPU's is looked at later.
    monkeypatch.setattr("cl_clipfit.training.loss_watch.LossWatch.leaves_out", lambda *_: False)
    registry = Registry([Path("examples/image_norms.py")])
    cls = registry.trained_class(name)
    plugin = watch(cls, tiny, source)
    assert plugin.watched >= 6 * (cls.learning == "gradient")
    assert not plugin.found


@pytest.mark.parametrize(
    "code",
    ["loss.item()", "torch.tensor([0], device=loss.device)", "logits[[0]]", "logits[logits > 0]",
     "bool(loss > 0)", "logits.isfinite().all().cpu()", "logits.detach().nonzero()",
     "torch.equal(logits, logits)", "torch.tensor([0]).to(loss.device)"],
)  # fmt: skip
def test_a_wait_is_seen(code: str, tiny: Build, source: Source) -> None:
    class Waiting(TwoGroups):
        def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
            loss = super().compute_loss(logits, labels)
            eval(code, {"torch": torch}, {"loss": loss, "logits": logits})
            return loss

        def optimizer_step(self) -> None:
            """Leave the optimiser's own reads out."""

    quiet = watch(Quiet, tiny, source)
    found = watch(Waiting, tiny, source)
    assert found.watched == quiet.watched > 0
    assert len(found.found) >= len(quiet.found) + found.watched


class Quiet(TwoGroups):
    """Does nothing that waits, and no optimiser step."""

    def optimizer_step(self) -> None:
        """Leave the optimiser's own reads out."""


def test_the_columns_kept_are_those_of_the_classes() -> None:
    logits = torch.randn(3, 5, requires_grad=True)
    kept = keep_columns(logits, [4, 1])
    expected = torch.full((3, 5), -torch.inf)
    expected[:, 1], expected[:, 4] = logits[:, 1], logits[:, 4]
    assert torch.equal(kept, expected)
    kept[:, [1, 4]].sum().backward()
    assert torch.equal(logits.grad, torch.tensor([0.0, 1, 0, 0, 1]).expand(3, 5))
    again = label_index((4, 1), logits.device)
    assert again is label_index([4, 1], logits.device)
    assert again.tolist() == [4, 1]
    assert again.dtype == torch.long


class Cuda(nn.Parameter):
    is_cuda = True


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimisers_are_fused_on_cuda_alone(name: Any) -> None:
    recipe = Recipe(optimizer=name)
    on_cpu = [{"params": [nn.Parameter(torch.ones(2))]}]
    assert make_optimizer(recipe, on_cpu).defaults["fused"] is None
    on_cuda = [{"params": [Cuda(torch.ones(2))]}]
    assert make_optimizer(recipe, on_cuda).defaults["fused"] is True
    both = [*on_cpu, *on_cuda]
    assert make_optimizer(recipe, both).defaults["fused"] is None


def test_batches_for_cuda_come_from_pinned_memory(tiny: Build, source: Source) -> None:
    strategy = make(TwoGroups, tiny, source)
    strategy.adapted_dataset = (
        build_scenario("s", source, tasks=3).benchmark.train_stream[0].dataset
    )
    strategy.make_train_dataloader()
    assert not strategy.dataloader.pin_memory
    strategy.device = torch.device("cuda")
    strategy.make_train_dataloader()
    assert strategy.dataloader.pin_memory


# ---- the command ---------------------------------------------------------------------------------


def test_the_options_reach_the_model_and_stay_out_of_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int | None, bool]] = []
    compute = CLIPStrategy.compute_loss

    def spy(self: CLIPStrategy, logits: Tensor, labels: Tensor) -> Tensor:
        seen.append((self.model.micro_batch, self.model.recompute))
        return compute(self, logits, labels)

    monkeypatch.setattr(CLIPStrategy, "compute_loss", spy)
    folders: list[Path] = []
    for options in (["--micro-batch", "3", "--recompute"], []):
        output = tmp_path / str(len(folders))
        arguments = [*TRAINED, "--epochs", "1", "--quiet", "--output", str(output), *options]
        assert main(arguments) == 0
        folders += [file.parent for file in output.glob("*/result.json")]
    assert set(seen) == {(3, True), (None, False)}
    assert folders[0].name == folders[1].name
    given, default = (read_config(folder / "config.yaml") for folder in folders)
    assert (given["micro_batch"], given["recompute"]) == (3, True)
    assert default["micro_batch"] == "auto"
    assert '"micro_batch": 3' in (folders[0] / "result.json").read_text()


def test_a_command_says_that_memory_ran_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def step(self: CLIPStrategy) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. See more.")

    monkeypatch.setattr(CLIPStrategy, "after_step", step)
    assert main([*TRAINED, "--quiet", "--output", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "failed in task 1: out of memory: a smaller model, --precision bf16" in lines[0]
