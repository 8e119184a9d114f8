"""RanPAC with a first session: one task tunes the tower, and the head is that of its features."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.faults.job import artefacts
from cl_clipfit import CLIPClassifier, Recipe, Scenario, Source, build_scenario
from cl_clipfit.cli.app import main
from cl_clipfit.commands.evaluate import BankEvaluation
from cl_clipfit.config.command import RunConfig
from cl_clipfit.config.merge_settings import ModeSettings
from cl_clipfit.config.parsing import parse_command
from cl_clipfit.experiment.learner import Learner
from cl_clipfit.experiment.reopen import open_run
from cl_clipfit.experiment.run_plan import resolve
from cl_clipfit.heads.leave_one_out import ridge_losses
from cl_clipfit.heads.linear import ridge_head
from cl_clipfit.heads.statistics import Statistics
from cl_clipfit.methods import closed_form
from cl_clipfit.registry import Registry
from cl_clipfit.runtime.progress import Progress
from cl_clipfit.storage.checkpoints import Checkpoints
from cl_clipfit.storage.run_folder import BANK
from cl_clipfit.strategies.clipfit import ClipFitOptions
from cl_clipfit.strategies.ranpac import RanPAC, RanPACOptions
from tests.support.kills import Killed
from tests.support.tiny import TINY

Build = Callable[..., CLIPClassifier]
REGISTRY = Registry([Path("examples/image_norms.py")])
BASES: dict[str, Any] = {n: REGISTRY.strategy_class(n) for n in ("clipfit", "full", "image-norms")}
LABEL = "ranpac:first_session=clipfit"
RECIPE = Recipe(epochs=2, batch_size=8, lr=0.02)


def make(base: str, build: Build, source: Source, **given: Any) -> tuple[Any, Scenario]:
    torch.manual_seed(1)
    scenario = build_scenario("s", source, tasks=3)
    cls = RanPAC.over(BASES[base])
    names = scenario.class_names
    return cls(model=build(), class_names=names, recipe=RECIPE, **given), scenario


def weights(strategy: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in strategy.model.named_parameters()}


@pytest.mark.parametrize("base", BASES)
def test_the_first_task_trains_as_the_base_and_no_later_one_moves_a_weight(
    base: str, tiny: Build, source: Source
) -> None:
    torch.manual_seed(1)
    alone = BASES[base](model=tiny(), class_names=source.class_names, recipe=RECIPE)
    stream = build_scenario("s", source, tasks=3).benchmark.train_stream
    alone.train(stream[0], eval_streams=[])
    strategy, scenario = make(base, tiny, source)
    for task, experience in enumerate(scenario.benchmark.train_stream, 1):
        strategy.train(experience, eval_streams=[])
        assert strategy.statistics.number == 16 * task
        for name, value in alone.model.named_parameters():
            assert torch.equal(value, strategy.model.get_parameter(name)), name
    moved = [not torch.equal(v, strategy.model.pretrained_values[n])
             for n, v in strategy.selection.items()]  # fmt: skip
    assert all(moved) and set(strategy.selection) == set(alone.selection)


def test_the_head_is_ridge_regression_on_the_features_of_the_tuned_tower(
    tiny: Build, source: Source
) -> None:
    strategy, scenario = make("clipfit", tiny, source, options=RanPACOptions(width=20))
    strategy.train(scenario.benchmark.train_stream, eval_streams=[])
    model, test = strategy.model, scenario.test.images
    projection = torch.randn(16, 20, generator=torch.Generator().manual_seed(strategy.seeds.init))

    def embed(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return (model.image_features(images) @ projection).relu() / 4  # the root of 16

    whole, errors = Statistics.empty(20, 6), torch.zeros(len(closed_form.PENALTIES)).double()
    for classes in scenario.task_classes:
        mask = torch.isin(scenario.train.labels, torch.tensor(classes))
        features, labels = embed(scenario.train.images[mask]), scenario.train.labels[mask]
        whole += Statistics.of(features, labels, 6)
        errors += ridge_losses(whole, features, labels, closed_form.PENALTIES)
    head = ridge_head(whole, closed_form.PENALTIES[int(errors.argmin())])
    expected = head(embed(test)).float()
    torch.testing.assert_close(strategy.score_all(test), expected, rtol=1e-4, atol=1e-5)
    with model.pretrained_weights():  # which moved the features that the head sees
        assert not torch.allclose(head(embed(test)).float(), expected, atol=1e-3)


def test_before_the_head_the_base_classifies_and_probes_are_those_of_zero_shot(
    tiny: Build, source: Source
) -> None:
    strategy, scenario = make("full", tiny, source)
    images, names, templates = scenario.test.images, ["a", "b"], ("{}",)
    zero_shot = tiny()
    zero_shot.add_classes(scenario.class_names)
    with torch.no_grad():
        text = zero_shot.encode_names(names, templates)
        expected = zero_shot.logits(zero_shot.image_features(images), text)
        torch.testing.assert_close(strategy.score_all(images), zero_shot(images))
        torch.testing.assert_close(
            strategy.joint_scores(images, text), torch.cat([zero_shot(images), expected], 1)
        )
    strategy.train(scenario.benchmark.train_stream[0], eval_streams=[])
    probe = strategy.score_probe(images, names, templates)
    torch.testing.assert_close(probe, expected, rtol=1e-4, atol=1e-4)
    joint = strategy.joint_scores(images, text)
    assert joint[:, :2].isfinite().all()
    assert (joint[:, 2:] == -math.inf).all()  # unseen classes, and names


def test_a_pass_of_what_the_base_adds_is_not_random(tiny: Build, source: Source) -> None:
    """The head sees features as in scoring, not with the dropout of training."""
    strategy, scenario = make("image-norms", tiny, source)
    strategy.model.adapter = torch.nn.Dropout()
    visual = strategy.model.clip.visual
    visual.register_forward_hook(lambda *given: strategy.model.adapter(given[2]))
    strategy.train(scenario.benchmark.train_stream[0], eval_streams=[])
    with torch.no_grad():
        features = strategy.embed(strategy.model.image_features(scenario.train.images[:16]))
    expected = Statistics.of(features, scenario.train.labels[:16], 6)
    torch.testing.assert_close(strategy.statistics.gram, expected.gram, rtol=1e-4, atol=1e-6)


def test_options_and_work_are_those_of_the_base(tiny: Build, source: Source) -> None:
    own, options = RanPACOptions(width=7), ClipFitOptions(kd_weight=3)
    strategy, scenario = make("clipfit", tiny, source, options=own, first_session_options=options)
    assert (strategy.options, strategy.head_options) == (options, own)
    plan: Any = type("Plan", (), {"recipe": RECIPE})
    sizes = [Learner(strategy, plan, scenario).size(task) for task in (1, 2, 3)]
    assert sizes == [(2, 4), (0, 0), (0, 0)]


# ---- commands ----------------------------------------------------------------------------------

SMALL = [*TINY, "--epochs", "2", "--tasks", "3", "--batch-size", "10", "--quiet"]


def run(folder: Path, *more: str) -> int:
    return main([*SMALL, "--output", str(folder), *more])


def result_of(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*/result.json")
    return json.loads(path.read_text())


def test_none_is_the_method_as_it_was(tmp_path: Path, source: Source, tiny: Build) -> None:
    assert run(tmp_path / "default", "--strategy", "ranpac") == 0
    assert run(tmp_path / "named", "--strategy", "ranpac:first_session=none") == 0
    result, named = (result_of(tmp_path / name) for name in ("default", "named"))
    assert result["digest"] == named["digest"]
    assert result["all_classes_matrix"] == named["all_classes_matrix"]
    assert result["recipe"] is result["host"] is None
    assert result["model"]["trainable_parameters"] == 0
    scenario = build_scenario("s", source, tasks=3)
    plain, tuned = (
        cls(model=tiny(), class_names=scenario.class_names)
        for cls in (closed_form.RandomRidgeStrategy, RanPAC)
    )
    for strategy in (plain, tuned):
        strategy.train(scenario.benchmark.train_stream, eval_streams=[])
    images = scenario.test.images
    assert torch.equal(plain.score_all(images), tuned.score_all(images))


def test_the_bank_keeps_the_weights_and_the_head_of_every_task(tmp_path: Path) -> None:
    more = ["ranpac.width=30", "clipfit.kd_weight=3"]
    probe = ["--probe", "tiny-stream", "--lr", "0.01"]
    assert run(tmp_path, "--strategy", f"{LABEL},ce_scope=seen", "--set", *more, *probe) == 0
    result = result_of(tmp_path)
    assert result["options"] == {"width": 30, "first_session": "clipfit"}
    assert result["host"]["options"]["ce_scope"] == "seen"
    assert result["host"]["options"]["kd_weight"] == 3
    assert result["recipe"]["lr"] == 0.01
    assert result["metrics"]["retention"] == 0
    assert result["change_by_layer"][0] == result["change_by_layer"][2] != {}
    (folder,) = (path.parent for path in tmp_path.glob("*/result.json"))
    assert {p.name for p in (folder / BANK).glob("task-003*")} == {
        f"task-003{kind}.safetensors" for kind in ("", "-head", "-statistics")
    }
    finished = open_run(folder, Progress())
    for name, value in finished.bank.load(1).items():
        assert torch.equal(value, finished.bank.load(3)[name]), name
    summary = BankEvaluation(finished, ModeSettings()).evaluate("latest").summary()
    assert summary["accuracy_matrix"] == result["accuracy_matrix"]
    assert main(["verify", str(folder), "--replay", *TINY[2:]]) == 0


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what an uninterrupted run leaves."""
    folder = tmp_path_factory.mktemp("unbroken")
    assert run(folder, "--strategy", LABEL, "--probe", "tiny-stream") == 0
    return artefacts(folder)


@pytest.mark.parametrize(
    "saves", [2, 3, 4, 5], ids=["in task 1", "trained, no head", "in task 2", "in task 3"]
)
def test_a_killed_run_ends_as_an_unbroken_one(
    saves: int, unbroken: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Task 1 is saved at its start and after both epochs, later tasks at their start."""
    write, calls = Checkpoints.save, [0]

    def save(self: Checkpoints, state: dict[str, Any]) -> None:
        calls[0] += 1
        write(self, state)
        if calls[0] == saves:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        with pytest.raises(Killed):
            run(tmp_path, "--strategy", LABEL, "--probe", "tiny-stream")
    assert run(tmp_path, "--strategy", LABEL, "--probe", "tiny-stream") == 0
    assert calls[0] == saves  # the rest was saved without counting
    assert artefacts(tmp_path) == unbroken


def test_a_run_stopped_in_a_step_ends_as_an_unbroken_one(
    unbroken: dict[str, Any], tmp_path: Path, stop_at: Any
) -> None:
    stop_at(3)
    assert run(tmp_path, "--strategy", LABEL, "--probe", "tiny-stream") == 143
    stop_at(0)
    assert run(tmp_path, "--strategy", LABEL, "--probe", "tiny-stream") == 0
    assert artefacts(tmp_path) == unbroken


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("first_session=coop", "ranpac.first_session=coop: coop does not train the image tower"),
        ("first_session=linear-head", "linear-head does not train the image tower"),
        ("first_session=lda", "lda does not train the image tower"),
        ("first_session=zero-shot", "zero-shot does not train the image tower"),
        ("first_session=mergetune", "mergetune builds on another method itself"),
        ("first_session=stack", "stack builds on another method itself"),
        ("first_session=clipfti", "unknown strategy 'clipfti'. Did you mean 'clipfit'?"),
        ("first_session=clipfit,host=full", "neither ranpac nor its first_session has an option"),
        ("first_session=clipfit,layer_norms=none", "trains nothing of the image tower"),
        ("epochs=3", "ranpac has no option 'epochs'"),
    ],
)
def test_what_cannot_tune_the_tower_is_refused(label: str, says: str, refused: Any) -> None:
    assert says in refused(*TINY, "--strategy", f"ranpac:{label}")


def test_images_seen_once_and_no_published_recipe_are_refused(refused: Any) -> None:
    command = [*TINY, "--strategy", LABEL, "--online", "5"]
    assert "it trains on a task's images again" in refused(*command)
    command = [*TINY, "--strategy", "ranpac:first_session=full", "--recipe", "published"]
    assert "no published recipe is known for full" in refused(*command)
    for label in ("stack:base=none", "mergetune:host=none"):
        assert "unknown strategy 'none'" in refused(*TINY, "--strategy", label)


def test_the_published_recipe_is_the_width_of_the_paper_and_the_recipe_of_the_base() -> None:
    config = RunConfig(scenario="split-digits", strategy=[LABEL], recipe="published")
    (plan,) = resolve(parse_command(config), Registry()).plans
    assert plan.options == RanPACOptions(width=10_000, first_session="clipfit")
    assert plan.recipe is not None
    assert (plan.recipe.optimizer, plan.recipe.epochs) == ("sgd", 100)
