"""Lines and planes between solutions, against plain loops, known losses and the runs themselves."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from matplotlib.text import Annotation
from rich.console import Console
from torch import Tensor

from cl_clipfit import CLIPClassifier, Recipe, Source
from cl_clipfit.cli.app import main
from cl_clipfit.commands import landscape as command_of_landscape
from cl_clipfit.evaluation import landscape
from cl_clipfit.evaluation.landscape import (
    LINES,
    Sample,
    plane_axes,
    plane_landscape,
    profile,
    profiles,
)
from cl_clipfit.experiment.reopen import FinishedRun, open_run
from cl_clipfit.merging import barrier, plane
from cl_clipfit.registry import Registry
from cl_clipfit.report import figures
from cl_clipfit.report import landscape as landscapes
from cl_clipfit.report.display import ConsoleDisplay
from cl_clipfit.report.figures import new_figure
from cl_clipfit.strategies.clipfit import ClipFit
from cl_clipfit.training.strategy import CLIPStrategy
from tests.support.tiny import PLUGIN, TINY

Build = Callable[..., CLIPClassifier]
Values = dict[str, Tensor]


def between(build: Build, source: Source) -> tuple[ClipFit, Values, Values, Sample]:
    """Return a strategy, two solutions away from its own weights, and a sample of some classes."""
    strategy = ClipFit(model=build(), class_names=source.class_names, recipe=Recipe())
    strategy.select()
    generator = torch.Generator().manual_seed(5)
    start, end = (
        {
            n: p.detach() + 0.3 * torch.randn(p.shape, generator=generator)
            for n, p in strategy.selection.items()
        }
        for _ in range(2)
    )
    own = torch.isin(source.train.labels, torch.tensor([4, 1, 2]))
    return (
        strategy,
        start,
        end,
        Sample(source.train.images[own], source.train.labels[own], [4, 1, 2]),
    )


def test_a_profile_is_what_a_plain_loop_finds(tiny: Build, source: Source) -> None:
    strategy, start, end, sample = between(tiny, source)
    before = {n: v.clone() for n, v in strategy.model.state_dict().items()}
    found = profile(strategy, start, end, sample, points=4)
    assert all(torch.equal(v, before[n]) for n, v in strategy.model.state_dict().items())
    clip, model = strategy.model.clip, strategy.model
    parameters = dict(model.named_parameters())
    prompts = model.tokenizer([f"a photo of a colour {c}." for c in (4, 1, 2)])
    for i in range(4):
        with torch.no_grad():
            for name in start:
                parameters[name].copy_(start[name] * (1 - i / 3) + end[name] * (i / 3))
            images = clip.encode_image(model.preprocess(sample.images))
            text = clip.encode_text(prompts)
            images, text = (x / x.norm(dim=-1, keepdim=True) for x in (images, text))
            share = (clip.logit_scale.exp() * images @ text.T).softmax(-1)
        rows = torch.tensor([[4, 1, 2].index(label) for label in sample.labels.tolist()])
        loss = -share[range(len(rows)), rows].log().mean().item()
        accuracy = 100 * (share.argmax(1) == rows).double().mean().item()
        assert found["alpha"][i] == pytest.approx(i / 3)
        assert found["loss"][i] == pytest.approx(loss, rel=1e-4)
        assert found["accuracy"][i] == pytest.approx(accuracy)
    a, b, c, d = found["loss"]
    rises = max(0, b - (2 * a + d) / 3, c - (a + 2 * d) / 3)
    assert found["barrier"] == pytest.approx(rises, abs=1e-9)


def test_lines_that_share_ends_have_the_numbers_of_each_on_its_own(
    tiny: Build, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy, start, end, sample = between(tiny, source)
    points = {
        "zero-shot": strategy.zero_shot_point(), "previous": start, "host": end,
        "merged": {n: 0.3 * v for n, v in end.items()},
    }  # fmt: skip
    alone = {f"{a} to {b}": profile(strategy, points[a], points[b], sample, 3) for a, b in LINES}
    calls = []
    real = landscape.loss_and_accuracy
    monkeypatch.setattr(
        landscape, "loss_and_accuracy", lambda *given: calls.append(given) or real(*given)
    )
    assert profiles(strategy, points, sample, 3) == alone
    assert len(calls) == 4 + 4 * 1
    del points["merged"]
    assert list(profiles(strategy, points, sample, 3)) == ["zero-shot to host", "previous to host"]


def replace_loss(monkeypatch: pytest.MonkeyPatch, loss: Callable[[Tensor], Tensor]) -> None:
    """Make the loss a function of the one tensor w."""
    monkeypatch.setattr(
        landscape, "loss_and_accuracy", lambda _, values, sample: (float(loss(values["w"])), 50.0)
    )


def test_the_barrier_between_two_wells_is_their_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_loss(monkeypatch, lambda w: (w.square() - 1).square().sum())
    one, other = {"w": torch.tensor([-1.0])}, {"w": torch.tensor([1.0])}
    found = profile(None, one, other, None)
    assert found["barrier"] == pytest.approx(1, abs=1e-5)
    assert found["loss"] == pytest.approx(
        [((0.2 * i - 1) ** 2 - 1) ** 2 for i in range(11)], abs=1e-5
    )
    replace_loss(monkeypatch, lambda w: w.square().sum())
    assert profile(None, one, other, None)["barrier"] == 0


def test_a_plane_of_a_quadratic_holds_squared_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    points = {n: {"w": torch.randn(7, generator=generator)} for n in ("a", "b", "c", "d")}
    replace_loss(monkeypatch, lambda w: (w - points["a"]["w"]).square().sum())
    surface = plane(points["a"], points["b"], points["c"])
    found = plane_landscape(None, surface, points, {"train": None}, count=5)
    unit = (points["b"]["w"] - points["a"]["w"]).norm().item()
    assert found["unit"] == pytest.approx(unit)
    for y, row in zip(found["y"], found["train"]["loss"], strict=True):
        assert row == pytest.approx([unit**2 * (x * x + y * y) for x in found["x"]], abs=1e-3)
    assert found["train"]["accuracy"] == [[50.0] * 5] * 5
    assert found["points"]["a"] == pytest.approx([0, 0], abs=1e-6)
    assert found["points"]["b"] == pytest.approx([1, 0], abs=1e-6)
    for x, y in found["points"].values():
        assert found["x"][0] < x < found["x"][-1] and found["y"][0] < y < found["y"][-1]
    replace_loss(monkeypatch, lambda w: w.sum() / 0)
    with pytest.raises(ValueError, match="of the plane is"):
        plane_landscape(None, surface, points, {"train": None}, count=2)


def test_the_grid_has_room_on_all_sides_of_points_on_a_line() -> None:
    xs, ys = plane_axes([(0, 0), (2, 0), (1, 0)], 11)
    assert (xs[0], xs[-1], ys[0], ys[-1]) == pytest.approx((-0.5, 2.5, -0.5, 0.5))
    assert len(xs) == len(ys) == 11
    assert xs[1] - xs[0] == pytest.approx(0.3)


def test_what_hardly_varies_is_drawn_flat() -> None:
    low, high = landscapes.widened(2.0, 2.001, "loss")
    assert high - low >= 100 * 0.001 * (1 - 1e-9) and low < 2 and high > 2.001
    assert landscapes.widened(100, 100, "accuracy") == (90, 100)
    assert landscapes.widened(0, 1, "accuracy") == (0, 10)
    assert landscapes.widened(20, 80, "accuracy") == (20, 80)


def test_labels_of_near_points_cover_neither_each_other_nor_marks() -> None:
    near = {"zero-shot": [0, 0], "previous": [0.02, 0.03], "host": [1, 0], "merged": [0.97, 0.02]}
    axes = new_figure(5, 3).subplots()
    axes.set(xlim=(-0.3, 1.3), ylim=(-0.5, 0.5))
    landscapes._label(axes, near)
    notes = [child for child in axes.get_children() if isinstance(child, Annotation)]
    boxes = [note.get_window_extent() for note in notes]
    assert sorted(note.get_text() for note in notes) == sorted(near)
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert not any(box.contains(*axes.transData.transform(p)) for p in near.values())


# ---- the command -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return finished runs of a host alone, of MERGETUNE on it, and of one that trains nothing."""
    output = tmp_path_factory.mktemp("runs")
    methods = ["image-norms", "mergetune:host=image-norms", "zero-shot"]
    arguments = [
        *TINY,
        "--strategy",
        *methods,
        "--set",
        "image-norms.lr=0.05",
        "--epochs",
        "4",
        "--quiet",
    ]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("plot_run", "plot_changes", "plot_comparison"):  # half of the time
            patch.setattr(figures, name, lambda *_: None)
        assert main([*arguments, "--output", str(output)]) == 0
    return {
        name: next(output.glob(f"tiny-stream-{name}-s0-*"))
        for name in ("image-norms", "mergetune", "zero-shot")
    }


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure planes on 9 points."""
    few = functools.partial(plane_landscape, count=3)
    monkeypatch.setattr(command_of_landscape, "plane_landscape", few)


def measure(run: Path, *arguments: str, task: int = 2) -> dict:
    assert main(["landscape", str(run), *arguments, "--task", str(task), *PLUGIN]) == 0
    return json.loads((run / f"landscape-task-{task:03d}.json").read_text())


@pytest.mark.usefixtures("coarse", "drawn_figures")
def test_ends_of_lines_are_the_runs_own_accuracies_and_no_weight_changes(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[FinishedRun, Values]] = []

    def opening(*arguments: object) -> FinishedRun:
        run = open_run(*arguments)
        state = run.strategy.model.state_dict()
        opened.append((run, {n: v.clone() for n, v in state.items()}))
        return run

    monkeypatch.setattr(command_of_landscape, "open_run", opening)
    folder = runs["mergetune"]
    found = measure(folder, "--images", "500")
    ((run, before),) = opened
    assert all(torch.equal(v, before[n]) for n, v in run.strategy.model.state_dict().items())
    result = json.loads((folder / "result.json").read_text())
    assert found["images"] == {"train": 24, "test": 48}
    assert found["classes"] == {"train": 3, "test": 6}
    lines = found["lines"]["test"]
    assert list(lines) == [f"{a} to {b}" for a, b in LINES]
    ends = {
        "merged": result["curves"]["accuracy"][-1],
        "host": result["merge"]["compared"]["host"]["curves"]["accuracy"][-1],
        "zero-shot": result["curves"]["zero_shot"][-1],
    }
    assert len(set(ends.values())) == 3
    for (a, b), line in zip(LINES, lines.values(), strict=True):
        assert len(line["loss"]) == len(line["accuracy"]) == len(line["alpha"]) == 11
        assert line["accuracy"][-1] == pytest.approx(ends[b])
        if a in ends:
            assert line["accuracy"][0] == pytest.approx(ends[a])
    # The run measured the training images itself, right after the task.
    barriers = result["merge"]["tasks"][1]["barriers"]
    assert max(barriers.values()) > 0.1
    for name, line in found["lines"]["train"].items():
        every_other = barrier(line["loss"][::2])  # a run measures fewer points
        assert every_other == pytest.approx(barriers[name], abs=1e-5)
    assert set(found["plane"]["points"]) == {"zero-shot", "previous", "host", "merged"}
    assert found["plane"]["points"]["host"] == pytest.approx([1, 0], abs=1e-5)
    assert found["plane"]["spanned_by"] == ["zero-shot", "host", "merged"]
    grid = found["plane"]["test"]["accuracy"]
    assert [len(row) for row in grid] == [3] * 3 == [len(found["plane"]["x"])] * 3
    printed = capsys.readouterr()
    assert "zero-shot to merged" in printed.out
    assert "estimated" not in printed.err
    for kind in ("png", "svg"):
        assert (folder / f"landscape-task-002.{kind}").stat().st_size > 1000
        assert (folder / f"plane-task-002.{kind}").stat().st_size > 1000


@pytest.mark.usefixtures("coarse", "drawn_figures")
def test_a_second_call_leaves_the_same_bytes(runs: dict[str, Path]) -> None:
    folder = runs["image-norms"]
    written = []
    for _ in range(2):
        found = measure(folder, "--images", "7")
        files = [*folder.glob("landscape-task-002.*"), *folder.glob("plane-task-002.*")]
        written.append({file.name: file.read_bytes() for file in files})
    assert written[0] == written[1]
    assert len(written[0]) == 5
    assert found["images"] == found["plane"]["images"] == {"train": 7, "test": 7}
    for kind in ("train", "test"):
        assert list(found["lines"][kind]) == ["zero-shot to host", "previous to host"]
    assert found["plane"]["spanned_by"] == ["zero-shot", "host", "previous"]


def test_three_points_on_a_line_span_no_plane(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs["image-norms"]
    stale = folder / "plane-task-001.png"
    stale.write_bytes(b"of an earlier call")
    found = measure(folder, "--images", "3", task=1)
    assert capsys.readouterr().out.splitlines()[0].startswith("no plane: ")
    assert found["plane"] is None and not stale.exists()
    lines = found["lines"]["test"]
    assert lines["zero-shot to host"] == lines["previous to host"]


def test_samples_are_fixed_draws_of_the_right_classes(runs: dict[str, Path]) -> None:
    run = open_run(runs["image-norms"], ConsoleDisplay(Console()))
    run.at_task(1)
    few, more = (command_of_landscape.take_samples(run, 1, count) for count in (5, 20))
    for kind in ("train", "test"):
        assert set(more[kind].labels.tolist()) <= {0, 1, 2} == set(more[kind].classes)
        pictures = {bytes(image.numpy()) for image in more[kind].images}
        assert len(few[kind].labels) == 5 and len(pictures) == 20
        assert {bytes(image.numpy()) for image in few[kind].images} < pictures


def test_a_long_measurement_is_announced(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    points: dict[str, Values] = {name: {} for name in ("zero-shot", "previous", "host")}
    samples = {kind: Sample(torch.empty(0), torch.empty(0), []) for kind in ("train", "test")}
    for seconds, plane_samples, words in (
        (1, {}, ""),  # 2 (3 + 2 * 9) calls
        (1, samples, "estimated 5 minutes\n"),  # and 2 * 121
        (10, {}, "estimated 7 minutes\n"),
    ):
        monkeypatch.setattr(command_of_landscape, "_seconds", lambda *_, s=seconds: float(s))
        display = ConsoleDisplay(Console(stderr=True))
        command_of_landscape._announce(None, points, [samples, plane_samples], display)
        assert capsys.readouterr().err == words


def refuse(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that is refused; return its one line."""
    capsys.readouterr()
    assert main(["landscape", *map(str, arguments), *PLUGIN]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_bad_input_is_refused_in_a_line(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs["image-norms"]
    assert "not a run folder" in refuse(capsys, tmp_path)
    assert "zero-shot learns nothing" in refuse(capsys, runs["zero-shot"])
    for task in (0, 3):
        assert f"--task {task}: " in refuse(capsys, run, "--task", task)
    assert "at least one image" in refuse(capsys, run, "--images", 0)
    assert "device" in refuse(capsys, run, "--device", "abacus")
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    result = json.loads((run / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps({**result, "complete": False}))
    assert "not finished" in refuse(capsys, tmp_path)


def test_what_a_method_raises_is_a_line(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: CLIPStrategy, images: Tensor) -> Tensor:
        raise RuntimeError("no scores today")

    norms = Registry([Path("examples/image_norms.py")]).strategy_class("image-norms")
    monkeypatch.setattr(norms, "scores", broken, raising=False)  # the method's own
    line = refuse(capsys, runs["image-norms"])
    assert "strategy image-norms failed in task 2" in line
    assert "RuntimeError: no scores today" in line
