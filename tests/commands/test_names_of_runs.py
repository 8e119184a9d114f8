"""Names of run folders and comparisons: no two runs or data sets share one."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cl_clipfit import RunConfig, run
from cl_clipfit.runtime.progress import Progress
from cl_clipfit.storage.lock import BusyError, hold, hold_when_free
from cl_clipfit.storage.run_folder import RunFolder
from tests.support.feature_files import arrays

PLUGINS = [Path("examples/image_norms.py"), Path("benchmarks/faults/tiny_stream.py")]


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def draw(root: Path, shade: int = 0) -> Path:
    for name in ("ash", "oak"):
        (root / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8), (number, shade, 0)).save(root / name / f"{number}.png")
    return root


def execute(output: Path, progress: Progress | None = None, **settings: Any) -> list[Path]:
    config = RunConfig.model_validate({"output": output, "probe": [], "tasks": 2, **settings})
    return [result.path for result in run(config, progress)]


def tiny(output: Path, *strategies: str, **settings: Any) -> list[Path]:
    return execute(
        output, scenario="tiny-stream", plugin=PLUGINS, strategy=strategies, epochs=1, **settings
    )


def frozen(output: Path, data: Path, scenario: str = "folder", **settings: Any) -> Path:
    given = {"model": "mini"} if scenario == "folder" else {}
    given |= {"scenario": scenario, "strategy": ["zero-shot"], "data_dir": data}
    return execute(output, **given, **settings)[0]


def test_data_sets_are_told_apart(tmp_path: Path) -> None:
    output = tmp_path / "runs"
    plants = draw(tmp_path / "a" / "my plants")
    others = draw(tmp_path / "b" / "my plants", shade=200)  # a name that two data sets have
    with (tmp_path / "F.NPZ").open("wb") as file:
        np.savez(file, **arrays())
    names = [frozen(output, data).name for data in (plants, others)]
    names.append(frozen(output, tmp_path / "F.NPZ", "features").name)
    assert [name[:-8] for name in names] == [
        "folder-zero-shot-s0-my_plants-", "folder-zero-shot-s0-my_plants-",
        "features-zero-shot-s0-F-",
    ]  # fmt: skip
    tables = sorted(output.glob("*-comparison.csv"))
    assert [table.name[:16] for table in tables] == ["features-F-" + tables[0].name[11:16]] + [
        "folder-my_plants"
    ] * 2
    for table, name in zip(tables, sorted(names), strict=True):
        assert any(name in table.read_text() for name in names), name
    same = frozen(output, plants.rename(tmp_path / "renamed"))  # a run is that of its data
    assert same.name == names[0]
    assert len([*output.glob("folder-renamed-*-comparison.csv")]) == 1


def test_settings_of_a_method_are_told_apart(tmp_path: Path) -> None:
    labels = ("image-norms", "image-norms:lr=2e-3", "image-norms:optimizer=sgd,lr=2e-3")
    prefix = "tiny-stream-image-norms-s0-"
    one, two, three = tiny(tmp_path, *labels)
    names = [path.name.removeprefix(prefix)[:-8] for path in (one, two, three)]
    assert names == ["", "lr=0.002-", "optimizer=sgd+lr=0.002-"]
    (again,) = tiny(tmp_path, "image-norms", set=["image-norms.lr=0.002"])
    assert again == two
    (other,) = tiny(tmp_path, "image-norms", lr=2e-3)
    assert other == two


def test_a_run_under_another_name_is_not_repeated(tmp_path: Path) -> None:
    (path,) = tiny(tmp_path, "image-norms:lr=2e-3")
    earlier = path.rename(tmp_path / f"tiny-stream-image-norms-s0-{path.name[-8:]}")
    notes = Notes()
    assert execute(
        tmp_path, notes, scenario="tiny-stream", plugin=PLUGINS, strategy=["image-norms"],
        epochs=1, lr=2e-3,
    ) == [earlier]  # fmt: skip
    assert any("complete, shown again" in note for note in notes.notes)


@pytest.mark.parametrize("value", ["/" * 300, "\u00e9" * 300, "a b/../\n", [1] * 500])
def test_any_setting_makes_a_name_that_a_folder_can_have(tmp_path: Path, value: object) -> None:
    folder = RunFolder(tmp_path, "s" * 100, "full", 0, "0" * 64, {"key": value}, "d" * 70)
    folder.path.mkdir()
    assert folder.path.parent == tmp_path
    assert folder.path.name.startswith(f"{'s' * 100}-full-s0-{'d' * 60}-key=")
    assert folder.path.name.endswith("-00000000")


def test_labels_of_one_run_are_shown_once(tmp_path: Path) -> None:
    notes = Notes()
    paths = execute(
        tmp_path, notes, scenario="tiny-stream", plugin=PLUGINS, epochs=1, seed=[0, 1],
        strategy=["image-norms", "zero-shot", "image-norms:epochs=1", "image-norms:lr=2e-3"],
    )  # fmt: skip
    assert len(paths) == len(set(paths)) == 6
    assert [note for note in notes.notes if "the same run" in note] == [
        "image-norms:epochs=1 is the same run as image-norms: shown once, as image-norms"
    ]


def test_one_line_says_what_the_data_are(tmp_path: Path) -> None:
    notes = Notes()
    data = draw(tmp_path / "plants")
    execute(
        tmp_path / "o", notes, scenario="folder", data_dir=data, strategy=["zero-shot"],
        model="mini",
    )  # fmt: skip
    assert "folder plants: 2 classes (ash, oak), 4 training and 2 test images, 2 tasks" in (
        notes.notes
    )


def test_comparisons_of_two_commands_do_not_mix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one is drawn, no other is written; what one does not write is removed."""
    paths = tiny(tmp_path, "zero-shot")
    (tmp_path / "tiny-stream-comparison.svg").write_text("of an earlier command")
    plots: list[bool] = []

    def plot(results: Any, path: Path) -> None:
        assert not list(tmp_path.glob("*-comparison.*"))
        with pytest.raises(BusyError), hold_when_free(tmp_path, seconds=0.05):
            pass
        plots.append(True)

    monkeypatch.setattr("cl_clipfit.report.figures.plot_comparison", plot)
    assert tiny(tmp_path, "zero-shot") == paths
    assert plots == [True]
    assert [p.name for p in tmp_path.glob("*-comparison.*")] == ["tiny-stream-comparison.csv"]
    assert not (tmp_path / ".lock").exists()


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    free, taken = threading.Event(), threading.Event()

    def other() -> None:
        with hold(tmp_path):
            taken.set()
            free.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    taken.wait(10)
    threading.Timer(0.2, free.set).start()
    with hold_when_free(tmp_path):
        assert free.is_set()
    thread.join()
