"""Streams made of several data sets, each of them in its official format."""

import socket
import urllib.error
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torchvision.datasets import Flowers102

from cl_clipfit import DataRequest
from cl_clipfit.cli.app import main
from cl_clipfit.config.command import RunConfig
from cl_clipfit.data.fetch.download import file_hash
from cl_clipfit.data.images.lazy import ImageFiles
from cl_clipfit.errors import program
from cl_clipfit.experiment.prepare import prepare
from cl_clipfit.registry import Registry
from cl_clipfit.report.display import ConsoleDisplay
from cl_clipfit.scenarios import imagenet_shifts, mtil
from cl_clipfit.storage.run_folder import read_result
from tests.support.official import cifar_files, write_archive
from tests.support.official_imagenet import WNIDS, folders, imagenet, objectnet, unpacked
from tests.support.official_sets import BUILDERS


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a few small images of every class of the eleven."""
    folder = tmp_path_factory.mktemp("mtil")
    for name in mtil.ORDERS[1]:
        (folder / name).mkdir()
        if name in BUILDERS:
            BUILDERS[name](folder / name)
    write_archive(folder / "split-cifar100" / "cifar-100-python.tar.gz", cifar_files(1, 1))
    return folder


@pytest.fixture(autouse=True)
def _own_label_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision take the label files of these flowers for the official ones."""
    folder = root / "flowers102" / "flowers-102"
    files = {
        key: (name, file_hash(folder / name, "md5") if (folder / name).is_file() else "")
        for key, (name, _) in Flowers102._file_dict.items()
    }
    monkeypatch.setattr(Flowers102, "_file_dict", files)


@pytest.mark.parametrize("order", [1, 2])
def test_the_eleven_data_sets_come_in_the_published_order(root: Path, order: int) -> None:
    config = RunConfig(
        scenario=f"mtil:order={order}", data_dir=root, model="mini", probe=[],
        strategy=["zero-shot"], unverified_data=True,
    )  # fmt: skip
    prepared = prepare(config, ConsoleDisplay(Console(), quiet=True))
    source, layout = prepared.source, prepared.layout
    first_letters = {1: "f c s d e f f m o s s", 2: "s f m o f s f c d e s"}[order]
    assert " ".join(name[0] for name in layout.task_names) == first_letters
    registry = Registry()
    own = [registry.get("scenarios", name) for name in layout.task_names]
    assert [len(c) for c in layout.task_classes] == [entry.about["CLASSES"] for entry in own]
    assert layout.order == list(range(1201))  # each data set's labels in their own order
    start = 0
    for task, entry in enumerate(own):
        alone = entry.load().load(entry.options_class()(), DataRequest(root / entry.name, True))
        labels = range(start, start + len(alone.class_names))
        assert source.class_names[labels.start : labels.stop] == alone.class_names
        assert {source.templates[label] for label in labels} == {alone.templates}
        for joined, part in ((source.train, alone.train), (source.test, alone.test)):
            assert joined.tasks is not None
            rows = (joined.tasks == task).nonzero().flatten()
            assert torch.equal(joined.labels[rows] - start, part.labels)
            if isinstance(part.images, ImageFiles):
                assert [joined.images.name(row) for row in rows.tolist()] == list(part.images.paths)
            else:
                sample = joined.images[rows[:2]].to("cpu")
                assert torch.equal(sample, prepared.model.preprocess.fit(part.images[:2]))
        start = labels.stop


def test_imagenets_shifts_are_ranked_among_the_classes_each_twin_has(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wnids, some = WNIDS[:3], WNIDS[1:3]
    unpacked(tmp_path / "split-imagenet1k", imagenet(wnids))
    unpacked(tmp_path / "imagenet-v2", folders("imagenetv2-matched-frequency-format-val", "012"))
    unpacked(tmp_path / "imagenet-sketch", folders("sketch", wnids))
    unpacked(tmp_path / "imagenet-a", folders("imagenet-a", some))
    unpacked(tmp_path / "imagenet-r", folders("imagenet-r", some))
    unpacked(tmp_path / "objectnet", objectnet())
    arguments = [
        "--scenario", "imagenet-shifts", "--data-dir", str(tmp_path), "--model", "mini",
        "--strategy", "zero-shot", "--set", "split-imagenet1k.partial=true",
        "--output", str(tmp_path / "runs"),
    ]  # fmt: skip
    assert main(arguments) == 0, capsys.readouterr().err
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if path.is_dir())
    result = read_result(folder / "result.json")
    assert result is not None
    assert result["protocol"] == "transfer"
    assert len(result["class_order"]) == 3
    assert list(result["probes"]) == list(imagenet_shifts.PROBES)
    # pictures of one colour: every image of a set gets the same answer, right for one class
    shares = {name: round(100 / values[-1]) for name, values in result["probes"].items()}
    assert shares["imagenet-v2"] == shares["imagenet-sketch"] == 3
    assert shares["imagenet-a"] == shares["imagenet-r"] == 2
    printed = capsys.readouterr().out
    assert {"mean", "over", "probes", "objectnet"} <= {*printed.split()}


DOWNLOADED = [
    entry.name
    for entry in Registry().entries("scenarios")
    if entry.about["DOWNLOAD"][:1].isdigit() and entry.name not in ("mtil", "x-tail")
]
BY_HAND = ["split-cars196", "split-imagenet1k", "split-imagenet100", "objectnet", "folder",
           "domain-incremental", "features"]  # fmt: skip


@pytest.mark.parametrize("name", [*DOWNLOADED, *BY_HAND, "mtil", "x-tail", "cross-dataset"])
def test_without_network_every_data_set_says_what_to_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown_host(*_: object, **__: object) -> None:
        raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))

    monkeypatch.setattr("urllib.request.urlopen", unknown_host)
    monkeypatch.setenv("CL_CLIPFIT_DATA", str(tmp_path / "data"))
    model = [] if name == "features" else ["--model", "mini"]
    assert main(["--scenario", name, *model, "--probe", "--output", str(tmp_path / "r")]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "--data-dir" in line
    if name in DOWNLOADED:
        assert "the host name cannot be resolved (offline?). Download http" in line
        assert f"put it at {tmp_path / 'data'}" in line
        assert f"Then run offline: {program()} --scenario {name} --data-dir" in line
    assert not (tmp_path / "r").exists()
