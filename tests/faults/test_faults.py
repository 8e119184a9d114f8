"""A few trials of every campaign of `benchmarks.faults`, and proof that each can find a loss."""

import errno
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults import damage, inputs, job, kills, starts, writes
from benchmarks.faults.__main__ import CAMPAIGNS, main
from benchmarks.faults.job import Bench, Campaign, Place, start, wait
from cl_clipfit.report import figures
from cl_clipfit.storage.files import write_atomic


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Return a bench whose unbroken run all tests share."""
    return Bench(tmp_path_factory.mktemp("faults"))


@pytest.fixture(autouse=True)
def _quick_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one method do, without drawing its figures, which takes half of the time."""
    for module in (damage, kills, starts, writes):
        monkeypatch.setattr(module, "STRATEGIES", job.STRATEGIES[:1])
    for name in ("plot_run", "plot_changes", "plot_comparison"):
        monkeypatch.setattr(figures, name, lambda results, path: write_atomic(path, "drawn"))


def campaign(bench: Bench, name: str, trials: int) -> Campaign:
    """Run a few trials, without a loss."""
    found = Campaign()
    CAMPAIGNS[name][0](bench, found, trials, random.Random(1))
    assert found.losses == []
    return found


def test_kills(bench: Bench) -> None:
    found = campaign(bench, "kill", 1)
    assert found.trials == 1
    assert found.counts["kills"] >= 1


def test_damaged_files_and_checkpoints(bench: Bench) -> None:
    found = campaign(bench, "damage", 26)
    assert found.trials == 26
    assert found.counts["checkpoints_damaged"] == 1
    assert min(found.counts["bytes_flipped"], found.counts["files_cut_short"]) > 5


def test_input(bench: Bench) -> None:
    found = campaign(bench, "input", 150)
    assert found.trials == 150 == found.counts["read"] + found.counts["refused"]
    assert min(found.counts["read"], found.counts["refused"]) > 10


def test_starts(bench: Bench) -> None:
    found = campaign(bench, "starts", 1)
    others = found.counts.get("refused", 0) + found.counts.get("shown_again", 0)
    assert (found.counts["trained"], others, found.counts["downloads"]) == (1, 2, 1)


def test_failing_writes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writes, "ALL_FROM", 400)  # of some 250 calls, with three errors each
    found = campaign(bench, "writes", 1)
    assert found.counts["calls"] > 100
    ended = sum(found.counts.get(n, 0) for n in ("ended_with_a_line", "completed_all_the_same"))
    assert found.trials == ended == 3 * found.counts["calls"] // writes.ALL_FROM > 0


# ---- each campaign notices what it is there for --------------------------------------------------


@pytest.mark.parametrize("name", ["result.json", "bank/task-002.safetensors", "config.yaml"])
def test_a_run_that_ends_otherwise_is_a_loss(bench: Bench, tmp_path: Path, name: str) -> None:
    whole, wanted, _ = bench.unbroken(job.STRATEGIES[0])
    place = Place(tmp_path / "trial")
    shutil.copytree(whole.output, place.output)
    assert job.problem(place, 0, wanted) == ""
    (run,) = job.run_folders(place.output)
    text = (run / name).read_bytes()
    (run / name).write_bytes(text.replace(b'"seed": 0', b'"seed": 7'))
    if name != "result.json":
        (run / name).write_bytes(text[:-1])
    assert job.problem(place, 0, wanted).startswith("trial: differs from the uninterrupted run in ")
    (run / name).unlink()
    assert name in job.problem(place, 0, wanted)
    place.log().write_text("some\nerror: why\n")
    assert job.problem(place, 2, wanted) == "trial: exit code 2: error: why"


def test_a_trial_that_lost_something_is_kept(tmp_path: Path) -> None:
    found, bench = Campaign(), Bench(tmp_path)
    for name, text in (("well", ""), ("lost", "lost it")):
        with bench.place(name, found) as place:
            place.log().touch()
            found.end_trial(text)
    assert [path.name for path in tmp_path.iterdir()] == ["lost"]


def test_damage_that_verify_does_not_see_is_a_loss(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = job.artefacts(bench.unbroken(job.STRATEGIES[0])[0].output)
    monkeypatch.setattr(damage, "verified", lambda run: "")
    monkeypatch.setattr(damage, "_damage_checkpoint", lambda *_: None)
    found = Campaign()
    damage.damage_files(bench, found, 4, random.Random(0))
    assert len(found.losses) == found.trials == 3
    assert all(line.startswith("unnoticed: ") for line in found.losses)
    assert job.artefacts(bench.unbroken(job.STRATEGIES[0])[0].output) == whole


def _raise(error: BaseException) -> Callable[[Path], None]:
    def read(file: Path) -> None:
        raise error

    return read


def _turn_forever(file: Path) -> None:
    while True:
        try:
            file.read_bytes()
        except Exception:
            continue


def _write_outside(file: Path) -> None:
    (file.parent.parent / "here" / "appeared").touch()


@pytest.mark.parametrize(
    ("read", "way", "trials"),
    [
        (_raise(ZeroDivisionError("oops")), "tracebacks", 2),
        (_raise(SystemExit(3)), "crashes", 1),
        (_turn_forever, "hangs", 2),
        (_write_outside, "files_outside", 1),
        (lambda file: os.kill(os.getpid(), signal.SIGKILL), "crashes", 1),
    ],
)
def test_a_loader_that_fails_is_a_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Any, way: str, trials: int
) -> None:
    monkeypatch.setattr(inputs, "LIMIT_SECONDS", 0.1)
    monkeypatch.setattr(inputs, "KINDS", (("file.bin", lambda draws: b"abc", read),))
    found = Campaign()
    inputs.feed_bad_input(Bench(tmp_path), found, trials, random.Random(0))
    assert (found.counts[way], len(found.losses)) == (trials, trials)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    yield Place(tmp_path / "trial")


def _failing(place: Place, number: int, name: str, work: Callable[[], Any]) -> str:
    """Do some work on a disk whose call fails, in another process; return what it printed."""

    def child() -> int:
        writes.Disk([place.output], number, name, place.log("calls")).install()
        work()
        return 0

    wait(start(child, place.log()))
    return place.said().strip()


def test_every_call_of_an_atomic_write_is_counted_and_fails(place: Place) -> None:
    target = place.output / "deep" / "file"
    assert _failing(place, 0, "EIO", lambda: write_atomic(target, b"x")) == ""
    calls = [line.split()[0] for line in place.said("calls").splitlines()]
    made = calls.count("mkdir")
    assert calls[made:] == ["open", "write", "fsync", "replace", "open", "fsync"]
    for number, call in enumerate(calls[made:], 1):
        said = _failing(place, number + 1, "EIO", lambda: write_atomic(target, b"y"))
        folder = number > calls[made:].index("replace") + 1  # not every system can do that
        assert (os.strerror(errno.EIO) in said) != folder, call
        assert target.read_bytes() == (b"y" if folder else b"x")
        place.log().unlink()


def test_a_full_disk_stays_full_and_lets_files_be_removed(place: Place) -> None:
    place.output.mkdir()
    (place.output / "old").touch()

    def work() -> None:
        for attempt in range(2):
            try:
                (place.output / f"new{attempt}").write_text("text")
            except OSError as error:
                print(error.strerror)
        (place.output / "old").unlink()

    said = _failing(place, 1, "ENOSPC", work)
    assert said.splitlines() == [os.strerror(errno.ENOSPC)] * 2
    assert [*place.output.iterdir()] == []


def test_options_and_output(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def lose(bench: Bench, found: Campaign, trials: int, draws: random.Random) -> None:
        for number in range(trials):
            found.end_trial("lost" if number == 0 else "")

    monkeypatch.setitem(CAMPAIGNS, "damage", (lose, 2.5))
    options = ["--trials", "2", "--only", "damage", "--folder", str(tmp_path)]
    assert main([*options, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["damage"]
    assert (found["trials"], found["losses"], found["examples"]) == (5, 1, ["lost"])
    assert main(options) == 1
    assert "damage: trials 5, losses 1" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--trials", "0"])
    assert "--trials must be 1 or more" in capsys.readouterr().err
