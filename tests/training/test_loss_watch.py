"""A NaN or infinite loss: the run stops and names the batch, or skips it."""

import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import cl_clipfit.experiment.run as experiment
from benchmarks.faults.job import artefacts
from cl_clipfit import CLIPClassifier, CLIPStrategy, Recipe, Source, build_scenario
from cl_clipfit.cli.app import main
from cl_clipfit.storage.checkpoints import Checkpoints
from cl_clipfit.training.loss_watch import IN_A_ROW, DivergedError, LossWatch
from cl_clipfit.training.optimization import lr_factor
from tests.support.kills import Killed
from tests.support.methods import TwoGroups
from tests.support.tiny import PLUGIN, TINY, TRAINED

EPOCHS = ["--epochs", "3", "--quiet"]
Build = Callable[..., CLIPClassifier]


class Bad:
    """Makes the loss of chosen steps, counted over the whole run from 1, no number.

    Attributes:
        seen: images, as the data hold them, and labels of these steps.
        runs: the `Run`s that were built.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch = monkeypatch
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.runs: list[Any] = []
        self.raw = torch.empty(0)
        self.steps = 0
        built = experiment.Run.__init__

        def keep(run: Any, *args: Any, **kwargs: Any) -> None:
            built(run, *args, **kwargs)
            self.runs.append(run)

        monkeypatch.setattr(experiment.Run, "__init__", keep)

    def at(self, *steps: int, value: float = math.nan, first: int = 0) -> "Bad":
        """Arm it for these steps; `first`: steps that an earlier process took."""
        unpack, loss = CLIPStrategy._unpack_minibatch, CLIPStrategy.compute_loss
        self.steps = first

        def unpacked(strategy: CLIPStrategy) -> None:
            self.raw = strategy.mbatch[0].clone()
            self.steps += strategy.is_training
            unpack(strategy)

        def computed(strategy: CLIPStrategy, logits: Tensor, labels: Tensor) -> Tensor:
            found = loss(strategy, logits, labels)
            if self.steps not in steps:
                return found
            self.seen.append((self.raw, labels.clone()))
            return found * value

        self.patch.setattr(CLIPStrategy, "_unpack_minibatch", unpacked)
        self.patch.setattr(CLIPStrategy, "compute_loss", computed)
        return self

    def training_data(self, task: int) -> tuple[Tensor, list[int]]:
        """Return the images of a task, read one by one in order, and their labels."""
        scenario = self.runs[-1].scenario
        (index,) = [
            torch.cat([e for e, t in zip(scenario.experiences, scenario.experience_tasks,
                                         strict=True) if t == task - 1])
        ]  # fmt: skip
        images = [scenario.train.images[int(i)] for i in index.sort().values]
        return torch.stack(images), scenario.train.labels[index.sort().values].tolist()


@pytest.fixture
def bad(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bad]:
    yield Bad(monkeypatch)
    monkeypatch.undo()


def run(*arguments: str, output: Path) -> int:
    return main([*arguments, *EPOCHS, "--output", str(output)])


def the(output: Path, name: str) -> Any:
    (file,) = output.glob(f"*/{name}")
    return json.loads(file.read_text())


def check_batch(batch: dict[str, Any], bad: Bad, task: int, step: int, loss: str) -> None:
    """Compare what `nan-batch.json` says with the batch that was bad, and with the data."""
    assert (batch["task"], batch["step"], batch["loss"]) == (task, step, loss)
    images, labels = bad.seen[-1]
    assert batch["labels"] == labels.tolist()
    assert len(batch["images"]) == len(images)
    data, known = bad.training_data(task)
    assert len(set(batch["images"])) == len(images)
    for place, image, label in zip(batch["images"], images, labels.tolist(), strict=True):
        assert torch.equal(data[place], image)
        assert known[place] == label


@pytest.mark.parametrize(
    ("value", "loss"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")]
)
def test_a_run_stops_and_names_the_batch(
    value: float, loss: str, bad: Bad, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad.at(9, value=value)  # 2 steps per epoch, 3 epochs per task: step 3 of task 2
    assert run(*TRAINED, output=tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for text in ("error: task 2, step 3: ", loss, "--lr", "--on-nan skip", "nan-batch.json"):
        assert text in line
    check_batch(the(tmp_path, "nan-batch.json"), bad, 2, 3, loss)
    (folder,) = tmp_path.glob("*/")
    assert not (folder / "result.json").exists()
    state = Checkpoints(folder, pytest.fail).load()
    assert state is not None
    assert (state["tasks"], state["at"]["epoch"]) == (1, 1)
    assert bad.steps == 9  # no step after it


@pytest.mark.parametrize(
    "more",
    [
        ["--set", "image-norms.augmentation=crop-flip"], ["--set", "image-norms.drop_last=true"],
        ["--micro-batch", "3"], ["--recompute"],
    ],
    ids=str,
)  # fmt: skip
def test_the_batch_is_found_whatever_is_done_to_its_images(
    more: list[str], bad: Bad, tmp_path: Path
) -> None:
    bad.at(2)
    assert run(*TRAINED, *more, "--batch-size", "5", output=tmp_path) == 2
    check_batch(the(tmp_path, "nan-batch.json"), bad, 1, 2, "nan")


def test_the_batch_of_a_piece_is_found_in_its_task(bad: Bad, tmp_path: Path) -> None:
    """Steps and places are those of the task, not of a piece of it that arrives online."""
    bad.at(4)
    online = [*TRAINED, "--online", "7", "--batch-size", "4"]
    assert main([*online, "--epochs", "1", "--quiet", "--output", str(tmp_path)]) == 2
    check_batch(the(tmp_path, "nan-batch.json"), bad, 1, 4, "nan")


def test_the_batch_of_a_second_stage_is_of_its_task(bad: Bad, tmp_path: Path) -> None:
    bad.at(6 + 2)  # the stage has its steps after the 6 of the host
    assert run(*TINY, "--strategy", "mergetune:host=image-norms", output=tmp_path) == 2
    check_batch(the(tmp_path, "nan-batch.json"), bad, 1, 8, "nan")


def test_the_batch_of_encoded_images_is_found(bad: Bad, tmp_path: Path) -> None:
    """A method that leaves the image tower alone gets features in place of images."""
    bad.at(2)
    assert run(*TINY, "--strategy", "linear-head", output=tmp_path) == 2
    check_batch(the(tmp_path, "nan-batch.json"), bad, 1, 2, "nan")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = random.Random(0)
    for name in ("ash", "beech", "cedar", "date"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(8):
            pixels = np.frombuffer(rng.randbytes(20 * 24 * 3), np.uint8).reshape(20, 24, 3)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("memory", ["0", "1"])
def test_the_batch_of_files_is_found(
    memory: str, photos: Path, bad: Bad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CL_CLIPFIT_IMAGE_GIB", memory)
    bad.at(2)
    job = ["--scenario", "folder", "--data-dir", str(photos), "--tasks", "2", "--model", "mini"]
    job += ["--probe", *PLUGIN, "--strategy", "image-norms", "--batch-size", "4"]
    assert run(*job, output=tmp_path / "runs") == 2
    check_batch(the(tmp_path / "runs", "nan-batch.json"), bad, 1, 2, "nan")


# ---- --on-nan skip -------------------------------------------------------------------------------


def train(build: Build, source: Source, recipe: Recipe, skipped: int) -> dict[str, Tensor]:
    """Train one task in plain PyTorch, without the optimiser step `skipped`."""
    torch.manual_seed(3)
    strategy = TwoGroups(model=build(), class_names=source.class_names, recipe=recipe)
    strategy.task_classes = [0, 1, 2]
    strategy.select()
    model, groups = strategy.model, strategy.parameter_groups()
    base = [group.get("lr", recipe.lr) for group in groups]
    optimizer = torch.optim.SGD(groups, recipe.lr, momentum=recipe.momentum)
    own = source.train.labels < 3
    data = torch.utils.data.TensorDataset(source.train.images[own], source.train.labels[own])
    loader = torch.utils.data.DataLoader(data, batch_size=recipe.batch_size, shuffle=True)
    torch.manual_seed(3)
    step = 0
    for _ in range(recipe.epochs):
        for images, labels in loader:
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate * lr_factor(recipe, step, len(loader))
            step += 1  # the place in the schedule is that in the data
            if step == skipped:
                continue
            optimizer.zero_grad()
            F.cross_entropy(model(images, [0, 1, 2]), labels).backward()
            optimizer.step()
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("schedule", ["constant", "cosine", "epoch-cosine"])
def test_a_skipped_step_changes_nothing(
    schedule: Any, tiny: Build, source: Source, bad: Bad
) -> None:
    recipe = Recipe(epochs=3, batch_size=8, lr=0.05, optimizer="sgd", schedule=schedule)
    expected = train(tiny, source, recipe, skipped=3)
    assert any(not torch.equal(p, train(tiny, source, recipe, 0)[n]) for n, p in expected.items())
    torch.manual_seed(3)
    strategy = TwoGroups(model=tiny(), class_names=source.class_names, recipe=recipe)
    strategy.watch = LossWatch(skip=True)
    bad.at(3)
    torch.manual_seed(3)
    stream = build_scenario("s", source, tasks=2).benchmark.train_stream
    strategy.train(stream[0], eval_streams=[])
    for name, value in expected.items():
        assert torch.allclose(strategy.selection[name], value, atol=1e-6), name
    (warning,) = strategy.warnings
    assert warning.startswith("task 1, step 3: the loss is nan")


def test_a_skipped_batch_is_in_the_result(
    bad: Bad, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad.at(9)
    assert run(*TRAINED, "--on-nan", "skip", output=tmp_path) == 0
    (warning,) = the(tmp_path, "result.json")["warnings"]
    assert warning.startswith("task 2, step 3: the loss is nan")
    places = json.loads(warning[warning.index("[") : warning.index("]") + 1])
    batch = {"task": 2, "step": 3, "loss": "nan", "labels": bad.seen[0][1].tolist()}
    check_batch({**batch, "images": places}, bad, 2, 3, "nan")
    assert warning in capsys.readouterr().err
    assert not list(tmp_path.glob("*/nan-batch.json"))
    assert main(["verify", str(next(tmp_path.glob("*/"))), *PLUGIN]) == 0


def test_ten_in_a_row_are_too_many(
    bad: Bad, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [*TRAINED, "--on-nan", "skip", "--batch-size", "4"]  # 6 steps an epoch, 18 a task
    bad.at(*range(2, 11), 12)
    assert run(*small, output=tmp_path / "nine") == 0
    bad.patch.undo()
    capsys.readouterr()
    Bad(bad.patch).at(*range(2, 12))
    assert run(*small, output=tmp_path / "ten") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{IN_A_ROW} times in a row" in line
    assert "task 1, step 11" in line
    assert "--on-nan skip" not in line
    assert the(tmp_path / "ten", "nan-batch.json")["step"] == 11


@pytest.mark.parametrize("kill", [2, 4])
def test_a_resumed_run_that_skips_ends_as_an_unbroken_one(
    kill: int, bad: Bad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad are a step before the kill, and one after it, of the same task."""
    skip = [*TRAINED, "--on-nan", "skip"]
    bad.at(2, 4, 5)
    assert run(*skip, output=tmp_path / "whole") == 0
    write, left = Checkpoints.save, [kill]

    def save(self: Checkpoints, state: dict[str, Any]) -> None:
        write(self, state)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    monkeypatch.setattr(Checkpoints, "save", save)
    bad.steps = 0
    with pytest.raises(Killed):
        run(*skip, output=tmp_path / "broken")
    assert bad.steps == 2 * (kill - 1)
    assert run(*skip, output=tmp_path / "broken") == 0
    assert artefacts(tmp_path / "broken") == artefacts(tmp_path / "whole")


def test_a_resumed_run_counts_on(
    bad: Bad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unbroken run would have stopped at the tenth in a row too."""
    bad.at(*range(2, 40))
    skip = [*TRAINED, "--on-nan", "skip", "--batch-size", "4"]  # 6 steps an epoch
    save, left = Checkpoints.save, [2]  # the start of the task, and an epoch

    def killed(self: Checkpoints, state: dict[str, Any]) -> None:
        save(self, state)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    monkeypatch.setattr(Checkpoints, "save", killed)
    with pytest.raises(Killed):
        run(*skip, output=tmp_path)
    assert bad.steps == 6
    assert run(*skip, output=tmp_path) == 2
    assert bad.steps == 11
    assert "task 1, step 11: the loss is nan, 10 times in a row" in capsys.readouterr().err


def test_what_stopped_goes_on_with_skip(
    bad: Bad, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The advice of the error, on the folder that it says is kept."""
    bad.at(9)
    assert run(*TRAINED, output=tmp_path) == 2
    (folder,) = tmp_path.glob("*/")
    bad.steps = 8
    again = ["--resume", str(folder), *PLUGIN, "--on-nan", "skip", "--force-resume", "--quiet"]
    assert main(again) == 0
    assert bad.steps == 12
    assert [w[:14] for w in the(tmp_path, "result.json")["warnings"] if "loss" in w] == [
        "task 2, step 3"
    ]
    assert not (folder / "nan-batch.json").exists()  # the run has ended well


def test_weights_that_are_no_numbers_are_no_result(
    bad: Bad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step of a run has no loss after it to give it away."""
    bad.at()

    def spoil(strategy: CLIPStrategy) -> None:
        if bad.steps == 12:
            next(iter(strategy.selection.values())).grad.fill_(math.nan)  # type: ignore[union-attr]

    monkeypatch.setattr(CLIPStrategy, "add_gradients", spoil)
    assert run(*TRAINED, output=tmp_path) == 2
    assert not list(tmp_path.glob("*/result.json"))


def test_finite_losses_are_left_alone(bad: Bad, tmp_path: Path) -> None:
    bad.at(3, value=1e30)  # large, and a number
    assert run(*TRAINED, "--on-nan", "skip", output=tmp_path) == 0
    assert not [w for w in the(tmp_path, "result.json")["warnings"] if "loss" in w]


def test_an_image_of_no_task_has_no_place(tiny: Build, source: Source, bad: Bad) -> None:
    """A plugin, such as replay, may mix others into a batch."""
    recipe = Recipe(epochs=1, batch_size=8)
    strategy = TwoGroups(model=tiny(), class_names=source.class_names, recipe=recipe)
    bad.at(1)
    original = CLIPStrategy._unpack_minibatch

    def mixed(self: CLIPStrategy) -> None:
        self.mbatch[0][0] = 255 - self.mbatch[0][0]
        original(self)

    bad.patch.setattr(CLIPStrategy, "_unpack_minibatch", mixed)
    stream = build_scenario("s", source, tasks=2).benchmark.train_stream
    with pytest.raises(DivergedError) as caught:
        strategy.train(stream[0], eval_streams=[])
    places = caught.value.batch["images"]
    assert places[0] is None
    assert None not in places[1:]


class Event:
    """Stands for a GPU's: done when it is told so, or waited for."""

    def __init__(self) -> None:
        self.done, self.waits = False, 0

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.waits += not self.done
        self.done = True


def test_losses_of_a_gpu_are_looked_at_when_they_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(LossWatch, "_stop", lambda self, strategy, loss, about: seen.append(about))
    watch, events = LossWatch(), [Event() for _ in range(6)]
    for number, event in enumerate(events[:4]):
        watch._queue.append((torch.tensor(math.nan if number == 2 else 1.0), event, {"n": number}))
        watch._look(None, under_way=4)
    assert [event.waits for event in events[:4]] == [0] * 4  # none is known, none is waited for
    events[0].done = events[1].done = True
    watch._look(None, under_way=4)
    assert len(watch._queue) == 2
    assert seen == []
    watch.flush(None)  # at the end of an epoch, all are
    assert [event.waits for event in events[:4]] == [0, 0, 1, 1]
    assert seen == [{"n": 2}]


def test_the_event_of_a_loss_is_recorded_on_the_stream_of_its_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which need not be the current device: `--device cuda:1`."""
    recorded: list[Any] = []

    class Recorded(Event):
        def record(self, stream: Any = "of the current device") -> None:
            recorded.append(stream)

    monkeypatch.setattr(torch.cuda, "Event", Recorded)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"of {device}")
    loss = SimpleNamespace(
        device=torch.device("cuda:1"), to=lambda *_, **__: torch.tensor(1.0)
    )  # fmt: skip
    strategy = SimpleNamespace(
        loss=SimpleNamespace(detach=lambda: loss), task_number=1, mb_y=None, task_steps=1,
        method_loss=None, plugin_loss=None,
    )  # fmt: skip
    assert not LossWatch().leaves_out(strategy, torch.empty(0))
    assert recorded == ["of cuda:1"]
