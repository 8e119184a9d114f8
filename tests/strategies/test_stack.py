"""The stack over every base: it trains as alone, its head is kept, and its scores are restored."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_clipfit import CLIPClassifier, CLIPStrategy, Recipe, Source, build_scenario
from cl_clipfit.cli.app import main
from cl_clipfit.commands.evaluate import BankEvaluation
from cl_clipfit.config.merge_settings import ModeSettings
from cl_clipfit.experiment.reopen import open_run
from cl_clipfit.registry import Registry
from cl_clipfit.runtime.progress import Progress
from cl_clipfit.storage.run_folder import BANK
from cl_clipfit.strategies import stack as stack_file
from cl_clipfit.strategies.clipfit import ClipFitOptions
from cl_clipfit.strategies.mergetune import MergeTune
from cl_clipfit.strategies.stack import Stack
from tests.support.methods import one_of_each_kind
from tests.support.tiny import PLUGIN, TINY

Build = Callable[..., CLIPClassifier]
REGISTRY = Registry([Path("examples/image_norms.py")])
BASES: dict[str, Any] = {e.name: e.strategy_class() for e in REGISTRY.entries("strategies")}
BASES = {n: c for n, c in BASES.items() if c.learning != "closed-form" and n != "stack"}
TABLES = ("accuracy_matrix", "all_classes_matrix", "task_aware_matrix")


def learn(cls: type[CLIPStrategy], build: Build, source: Source, **cut: Any) -> tuple[Any, Any]:
    torch.manual_seed(1)
    scenario = build_scenario("s", source, tasks=3, **cut)
    recipe = Recipe(epochs=1, batch_size=8, lr=0.02)
    strategy = cls(model=build(), class_names=scenario.class_names, recipe=recipe)
    for experience in scenario.benchmark.train_stream:
        strategy.train(experience, eval_streams=[])
    return strategy, scenario


def test_a_task_that_is_read_in_parts_is_that_task(
    tiny: Build, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = Stack.over(REGISTRY.trained_class("zero-shot"))
    whole = learn(over, tiny, source)[0].head_state()
    monkeypatch.setattr(stack_file, "_CHUNK", 5)
    for name, tensor in learn(over, tiny, source)[0].head_state().items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", sorted({*one_of_each_kind(BASES), "zero-shot", "clipfit"}))
def test_every_kind_of_base_trains_in_the_stack_as_it_does_alone(
    name: str, tiny: Build, source: Source
) -> None:
    alone, scenario = learn(REGISTRY.trained_class(name), tiny, source)
    stack, _ = learn(Stack.over(REGISTRY.trained_class(name)), tiny, source)
    assert stack.learning == ("closed-form" if name == "zero-shot" else "gradient")
    for parameter, value in alone.model.named_parameters():
        assert torch.equal(value, stack.model.get_parameter(parameter)), parameter
    images = scenario.test.images
    scores = stack.score_all(images)
    assert scores.isfinite().all()
    assert not torch.equal(scores, alone.score_all(images))
    assert stack.gaussian.statistics[0].counts.tolist() == [8] * 6
    *others, (passes, most) = stack.workload().sampled
    assert others == [*alone.workload().sampled]
    assert (passes, min(most, 8)) == (2, 8)
    head, stack.gaussian = stack.gaussian, None
    assert torch.equal(stack.score_all(images), alone.score_all(images))
    stack.gaussian = head
    # Probes are those of zero-shot CLIP, whatever the base has learned.
    names, templates = ["a", "b"], ("{}",)
    with torch.no_grad():
        model = tiny()
        text = model.encode_names(names, templates)
        expected = model.logits(model.image_features(images), text)
    probe = stack.score_probe(images, names, templates)
    torch.testing.assert_close(probe, expected, rtol=1e-4, atol=1e-4)


def test_epochs_do_not_write_the_sums_again(
    tiny: Build, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls, within = Stack.over(BASES["clipfit"]), []
    monkeypatch.setattr(cls, "after_step", lambda self: within.append("head" in self.state_dict()))
    stack, _ = learn(cls, tiny, source)
    assert within and not any(within)
    assert stack.state_dict()["head"].keys() == stack.head_state().keys() != set()


def test_the_rows_of_an_image_are_encoded_once(
    tiny: Build, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack, scenario = learn(Stack.over(BASES["clipfit"]), tiny, source)
    images, encoded = scenario.test.images, list[int]()
    real = CLIPClassifier.image_rows

    def counting(self: CLIPClassifier, batch: torch.Tensor, class_tokens: int) -> torch.Tensor:
        encoded.append(len(batch))
        return real(self, batch, class_tokens)

    monkeypatch.setattr(CLIPClassifier, "image_rows", counting)
    scores = [stack.score_all(images) for _ in range(2)]
    assert torch.equal(*scores)
    assert sum(encoded) == len(images)
    changed = images.clone()
    changed[0, 0, 0, 0] ^= 255  # in place, at another address: contents alone count
    assert not torch.equal(stack.score_all(changed)[0], scores[0][0])
    assert sum(encoded) == 2 * len(images)
    stack._kept.room = 0
    again = stack.score_all(images.flip(0)).flip(0)
    torch.testing.assert_close(again, scores[0], rtol=1e-4, atol=1e-4)
    assert len(stack._kept.rows) == 2  # one batch of each
    assert "_kept" not in stack.state_dict()


@pytest.mark.parametrize("cut", [{"online": 7}, {"blurry": 0.3}], ids=["online", "blurry"])
def test_all_images_of_a_stream_are_added_once(
    cut: dict[str, Any], tiny: Build, source: Source
) -> None:
    stack, scenario = learn(Stack.over(BASES["linear-head"]), tiny, source, **cut)
    assert int(stack.gaussian.statistics[0].counts.sum()) == len(scenario.train.images)
    whole, _ = learn(Stack.over(BASES["zero-shot"]), tiny, source)
    for one, other in zip(stack.gaussian.statistics, whole.gaussian.statistics, strict=True):
        assert one.counts.tolist() == other.counts.tolist()
        torch.testing.assert_close(one.gram, other.gram, rtol=1e-5, atol=1e-5)


def test_frozen_bases_read_class_tokens_that_were_encoded_once(tiny: Build, source: Source) -> None:
    images = source.train.images
    rows = tiny().image_rows(images, Stack.class_tokens)
    assert rows.shape == (len(images), 16 + 2 * 32)
    model = tiny()
    with torch.no_grad():
        torch.testing.assert_close(rows[:, :16], model.image_features(images))
        assert torch.equal(model.image_features(rows), model.image_features(rows[:, :16]))
    assert torch.equal(model.image_rows(rows, 2), rows)
    for block in rows.split([16, 32, 32], 1):
        torch.testing.assert_close(block.norm(dim=1), torch.ones(len(rows)))
    # By hooks on open_clip's own forward pass.
    tokens: list[torch.Tensor] = []
    for block in model.clip.visual.transformer.resblocks:
        block.register_forward_hook(lambda _m, _i, output: tokens.append(output[:, 0]))
    with torch.no_grad():
        model.clip.encode_image(model.preprocess(images))
    expected = torch.cat([torch.nn.functional.normalize(t, dim=1) for t in tokens], 1)
    torch.testing.assert_close(rows[:, 16:], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("stack:base=lda", "stack.base=lda: lda has a closed-form head itself"),
        ("stack:base=stack", "stack.base=stack: stack has a closed-form head itself"),
        ("stack:base=clipfti", "unknown strategy 'clipfti'. Did you mean 'clipfit'?"),
        ("stack:host=coop", "neither stack nor its base has an option 'host'"),
        ("mergetune:host=stack", "mergetune.host=stack: stack builds on another method itself"),
    ],
)
def test_what_cannot_be_stacked_is_refused(
    label: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, "--strategy", label]) == 2
    assert says in " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return folders of runs by base, of two tasks with a probe."""
    folder = tmp_path_factory.mktemp("runs")
    labels = ["stack:base=zero-shot", "stack:base=mergetune,host=linear-head,ce_scope=seen"]
    command = [*TINY, "--tasks", "2", "--probe", "tiny-stream", "--epochs", "1", "--lr", "0.01"]
    assert main([*command, "--strategy", *labels, "lda", "--output", str(folder)]) == 0
    files = list(folder.glob("*/result.json"))
    results = [json.loads(path.read_text()) for path in files]
    paths = {
        r["label"]: p.parent for r, p in zip(results, folder.glob("*/result.json"), strict=True)
    }
    return {"zero-shot": paths[labels[0]], "mergetune": paths[labels[1]], "lda": paths["lda"]}


def test_a_base_that_builds_on_another_gets_its_settings(runs: dict[str, Path]) -> None:
    result = json.loads((runs["mergetune"] / "result.json").read_text())
    assert result["host"]["name"] == "mergetune"
    assert result["host"]["options"]["host"] == "linear-head"
    assert result["host"]["host"]["name"] == "linear-head"
    assert result["host"]["host"]["options"]["ce_scope"] == "seen"
    assert result["recipe"]["epochs"] == 1
    used = {(code["name"], code["kind"]) for code in result["code"]}
    assert {("stack", "strategies"), ("mergetune", "strategies")} <= used
    assert issubclass(open_run(runs["mergetune"]).plan.cls, MergeTune)


def test_the_bank_restores_the_head_of_every_task(runs: dict[str, Path]) -> None:
    run = open_run(runs["mergetune"], Progress())
    result = BankEvaluation(run, ModeSettings()).evaluate("latest").summary()
    assert [result[name] for name in TABLES] == [run.result[name] for name in TABLES]
    for name in ("zero-shot", "lda"):
        run = open_run(runs[name], Progress())
        run.load_head(2)
        labels, images = run.scenario.test.labels, run.scenario.test.images
        right = (run.strategy.score_all(images).argmax(1) == labels).double().mean()
        assert 100 * float(right) == pytest.approx(run.result["metrics"]["last_accuracy"])


@pytest.mark.parametrize(
    ("name", "options"),
    [("bank eval", ["--mode", "all"]), ("merge", ["--method", "mean"]), ("landscape", [])],
)
def test_a_bank_of_sums_alone_is_not_merged(
    name: str, options: list[str], runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*name.split(), str(runs["lda"]), *options, *PLUGIN]) == 2
    assert "no values, only head" in " ".join(capsys.readouterr().err.split())


def test_the_bank_lists_a_head_and_a_merge_keeps_it(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["bank", "list", str(runs["lda"])]) == 0
    assert "task-002-head.safetensors" in capsys.readouterr().out
    assert (runs["lda"] / BANK / "task-002-head.safetensors").stat().st_size > 16 * 16 * 8
    assert main(["merge", str(runs["mergetune"]), "--method", "mean", *PLUGIN]) == 0
    folders = {path.parent for path in runs["mergetune"].parent.glob("*/result.json")}
    (merged,) = folders - {*runs.values()}
    before, after = (
        json.loads((p / "result.json").read_text()) for p in (runs["mergetune"], merged)
    )
    assert after["accuracy_matrix"][1] == before["accuracy_matrix"][1]  # the mean of one task
    assert (merged / BANK / "task-002-head.safetensors").exists()
    assert main(["bank", "export", str(runs["mergetune"]), str(tmp_path / "x.pt"), *PLUGIN]) == 2
    assert "closed-form head" in " ".join(capsys.readouterr().err.split())


def test_options_of_the_base_are_its_own(tiny: Build, source: Source) -> None:
    cls, names = Stack.over(BASES["clipfit"]), source.class_names
    stack: Any = cls(model=tiny(), class_names=names, base_options=ClipFitOptions(kd_weight=3))
    assert stack.options.kd_weight == 3
    assert stack.stacking.width == 1000


def test_a_class_and_another_of_its_name_are_as_probable_as_both(
    tiny: Build, source: Source
) -> None:
    stack, scenario = learn(Stack.over(BASES["clipfit"]), tiny, source)
    images, classes = scenario.test.images, len(scenario.class_names)
    text = stack.model.zero_shot_text_features
    other, another = torch.eye(2, text.shape[1])
    names = torch.stack([text[2], other])
    with torch.no_grad():
        joint = stack.joint_scores(images, names)
        apart = stack.joint_scores(images, torch.stack([another, other]))
    assert torch.equal(joint[:, 2], joint[:, classes])  # of one name: as the class among ties
    others = [c for c in range(classes + 2) if c not in (2, classes)]
    total = joint[:, others].exp().sum(1) + joint[:, 2].exp()
    torch.testing.assert_close(total, torch.ones(len(images)), rtol=1e-4, atol=1e-4)
    total = apart.exp().sum(1)
    torch.testing.assert_close(total, torch.ones(len(images)), rtol=1e-4, atol=1e-4)
