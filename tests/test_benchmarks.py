"""The benchmarks run and say what they should; how fast is not tested."""

import json
import tarfile
from pathlib import Path

import pytest
from torchvision.datasets import CIFAR100

from benchmarks import preprocess, stream
from cl_clipfit.data.decode import THREADS

WAYS = {"ours_32", "ours_256", "open_clip_32", "open_clip_256", "jpeg_files"}
TOWERS = {"tower_forward", "tower_training"}


def test_preprocessing_and_towers_are_timed(capsys: pytest.CaptureFixture) -> None:
    preprocess.main(["--model", "mini", "--batch-size", "2", "--repeats", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert set(found["images_per_second"]) == WAYS | TOWERS
    assert set(found["share_of_tower"]) == TOWERS
    assert all(set(shares) == WAYS for shares in found["share_of_tower"].values())
    speeds = found["images_per_second"]
    assert all(speed > 0 for speed in speeds.values())
    for tower, shares in found["share_of_tower"].items():
        for way, share in shares.items():
            assert share == pytest.approx(speeds[tower] / speeds[way])
    ratios = {side: speeds[f"ours_{side}"] / speeds[f"open_clip_{side}"] for side in ("32", "256")}
    assert found["open_clip_over_ours"] == pytest.approx(ratios)
    assert (found["batch_size"], found["repeats"], found["device"]) == (2, 1, "cpu")
    assert found["decoding_threads"] == THREADS


@pytest.mark.skipif(not stream.PROCESS.is_dir(), reason="peak memory is read from /proc")
def test_stages_of_a_stream_are_timed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sizes = ["--train", "2", "--test", "1", "--experiences", "10", "20", "--repeats", "1"]
    stream.main(["--data-dir", str(tmp_path), *sizes, "--threads", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    for key in ("seconds", "peak_bytes"):
        assert set(found[key]) == {"load", "cut", "avalanche"}
        assert all(value > 0 for value in found[key].values())
    assert set(found["online_seconds"]) == {"10", "20"}
    few, many = found["online_seconds"]["10"], found["online_seconds"]["20"]
    assert found["online_growth"] == pytest.approx(many / few / 2)
    assert min(few, many) > 0
    assert found["images"] == [200, 100]
    assert found["archive_bytes"] == (tmp_path / "cifar-100-python.tar.gz").stat().st_size


def test_the_archive_written_is_one_that_torchvision_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream.write_archive(tmp_path, 2, 1)
    monkeypatch.setattr(CIFAR100, "_check_integrity", lambda self: True)  # of the official files
    with tarfile.open(tmp_path / "cifar-100-python.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    source = stream.read(tmp_path)
    for train, ours in ((True, source.train), (False, source.test)):
        theirs = CIFAR100(str(tmp_path), train=train)
        assert (theirs.data.transpose(0, 3, 1, 2) == ours.images.numpy()).all()
        assert theirs.targets == ours.labels.tolist()


@pytest.mark.parametrize("wrong", [["--experiences", "15"], ["--repeats", "0"]])
def test_wrong_numbers_are_refused(wrong: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        stream.main(wrong)
    assert wrong[0] in capsys.readouterr().err
