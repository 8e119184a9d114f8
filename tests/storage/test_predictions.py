"""Files of predictions: equal bytes for equal answers, and a damaged file is not believed."""

import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cl_clipfit.errors import UserError
from cl_clipfit.metrics.predictions import Predictions
from cl_clipfit.storage.predictions import read_predictions, write_predictions


def answers(images: int = 3, seed: int = 0) -> Predictions:
    draw = np.random.default_rng(seed)
    return Predictions(
        np.arange(images, dtype=np.int32),
        draw.integers(0, 9, (images, 5), dtype=np.int32),
        draw.random((images, 5)).astype(np.float16),
        np.zeros(images, dtype=np.int32),
    )


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    assert read_predictions(tmp_path) == []
    rows = [answers(seed=seed) for seed in (0, 1, 2)]
    for row, kept in enumerate(rows):
        write_predictions(tmp_path, row, kept)
    for found, kept in zip(read_predictions(tmp_path), rows, strict=True):
        for name in ("labels", "top", "scores", "tasks"):
            assert getattr(found, name).dtype == getattr(kept, name).dtype
            np.testing.assert_array_equal(getattr(found, name), getattr(kept, name))


def test_equal_answers_give_equal_bytes_at_any_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_predictions(tmp_path / "a", 0, answers())
    now = time.time() + 1e6
    monkeypatch.setattr(time, "time", lambda: now)
    write_predictions(tmp_path / "b", 0, answers())
    one, other = (tmp_path / name / "predictions/row-000.npz" for name in "ab")
    assert one.read_bytes() == other.read_bytes()


def test_damaged_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    for row in (0, 1):
        write_predictions(tmp_path, row, answers())
    first, second = (tmp_path / f"predictions/row-{row:03d}.npz" for row in (0, 1))
    good = second.read_bytes()
    for bad in (b"", good[:-40], good.replace(b"labels", b"lapels")):
        second.write_bytes(bad)
        with pytest.raises(UserError, match=r"row-001\.npz is not what a run writes"):
            read_predictions(tmp_path)
    np.savez(second, labels=np.array([object()]), top=0, scores=0, tasks=0)
    with pytest.raises(UserError, match="holds objects"):
        read_predictions(tmp_path)
    kept = answers()
    np.savez(second, labels=kept.labels, top=kept.top, scores=kept.scores, tasks=kept.tasks[:2])
    with pytest.raises(UserError, match=r"tasks is int32 \(2,\)"):
        read_predictions(tmp_path)
    write_predictions(tmp_path, 1, answers(2))
    with pytest.raises(UserError, match="row 1 has other images"):
        read_predictions(tmp_path)
    second.write_bytes(good)
    first.unlink()
    with pytest.raises(UserError, match=r"row-000\.npz is missing"):
        read_predictions(tmp_path)


def test_a_file_that_unpacks_to_much_more_is_not_read(tmp_path: Path) -> None:
    write_predictions(tmp_path, 0, answers())
    file = tmp_path / "predictions/row-000.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.npy", bytes(80 << 20))
    with pytest.raises(UserError, match="more than 20 times"):
        read_predictions(tmp_path)
