"""Locks of run folders, held and fought over by real processes."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from cl_clipfit.errors import UserError
from cl_clipfit.storage.files import seal
from cl_clipfit.storage.lock import LOCK, hold

# How a process finds out that a file system has no locks; tests ask for it with an argument.
LOCKLESS = """
import errno, os, sys
def refuse(*_): raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
if sys.argv[2:] == ["lockless"]:
    import fcntl
    fcntl.flock = refuse
from pathlib import Path
from cl_clipfit.errors import UserError
from cl_clipfit.storage.lock import hold
folder = Path(sys.argv[1])
"""
HOLDER = f"""{LOCKLESS}
with hold(folder):
    print("held", flush=True)
    sys.stdin.read()
"""
# Forks one contender after another: each holds the folder for a moment if it can, proves that it is
# alone there, and half of them die without a word.
STARTER = f"""{LOCKLESS}
import json, random, time
inside, seed = folder.parent / "inside", os.getpid()
def contend(draws):
    try:
        with hold(folder):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
            time.sleep(draws.random() / 200)
            inside.unlink()
            if draws.random() < 0.5:
                os._exit(10)
            return 11
    except UserError as error:
        return 12 if "is writing it" in str(error) else 13
    except FileExistsError:
        return 14
print("ready", flush=True)
sys.stdin.read(1)
counts, end = {{}}, time.monotonic() + 2
while time.monotonic() < end:
    seed += 1
    pid = os.fork()
    if not pid:
        code = 15
        try:
            code = contend(random.Random(seed))
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    counts[code] = counts.get(code, 0) + 1
print(json.dumps(counts))
"""


@contextmanager
def process(script: str, folder: Path, *mode: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a script that says a word when it is ready."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", script, str(folder), *mode]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline().strip() in ("held", "ready")
            yield started
        finally:
            started.kill()


def make_lockless(monkeypatch: pytest.MonkeyPatch, code: int = errno.ENOLCK) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture(params=["flock", "lockless"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Return what makes other processes as this one: with and without locks of the system."""
    if request.param == "flock":
        return ()
    make_lockless(monkeypatch)
    return ("lockless",)


def refusal(folder: Path) -> str:
    """Return why a folder cannot be held: one line."""
    with pytest.raises(UserError) as caught, hold(folder):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_lock_says_who_has_it_and_goes_away(tmp_path: Path, mode: tuple[str, ...]) -> None:
    folder = tmp_path / "deep" / "run"
    for _ in range(2):
        before = datetime.now().astimezone()
        with hold(folder):
            found = json.loads((folder / LOCK).read_text())
            assert (found["pid"], found["host"]) == (os.getpid(), socket.gethostname())
            since = datetime.fromisoformat(found["since"])
            assert abs((since - before).total_seconds()) < 5
            assert [entry.name for entry in folder.iterdir()] == [LOCK]
        assert [*folder.iterdir()] == []


def test_it_ends_with_an_error_of_what_it_surrounds(tmp_path: Path, mode: tuple[str, ...]) -> None:
    with pytest.raises(FileNotFoundError, match="as it was"), hold(tmp_path):
        raise FileNotFoundError("as it was")
    assert [*tmp_path.iterdir()] == []
    with hold(tmp_path):
        pass


def test_a_second_process_is_told_who_and_what_to_do(tmp_path: Path, mode: tuple[str, ...]) -> None:
    with process(HOLDER, tmp_path, *mode) as holder:
        said = json.loads((tmp_path / LOCK).read_text())
        assert refusal(tmp_path) == (
            f"{tmp_path}: process {holder.pid} on {socket.gethostname()}, since {said['since']},"
            " is writing it: wait for it, or stop that process; if it has ended and this error"
            f" remains, remove {tmp_path / LOCK}"
        )
        assert json.loads((tmp_path / LOCK).read_text()) == said
        holder.communicate("")
    assert [*tmp_path.iterdir()] == []
    with hold(tmp_path):
        pass


def test_a_killed_process_leaves_nothing_in_the_way(tmp_path: Path, mode: tuple[str, ...]) -> None:
    with process(HOLDER, tmp_path, *mode) as holder:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    assert (tmp_path / LOCK).exists()
    with hold(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert [*tmp_path.iterdir()] == []


def test_the_same_process_cannot_hold_a_folder_twice(tmp_path: Path, mode: tuple[str, ...]) -> None:
    folder = tmp_path / "run"
    with hold(folder):
        assert "this process is writing it already" in refusal(folder)
        assert "this process" in refusal(folder / ".." / "run")
        with hold(tmp_path / "other"):
            pass
        assert (folder / LOCK).exists()
    with hold(folder):
        pass


def test_it_can_be_held_while_an_error_is_handled(tmp_path: Path) -> None:
    try:
        raise ValueError
    except ValueError:
        with hold(tmp_path):
            assert "this process" in refusal(tmp_path)


@pytest.mark.parametrize(
    "text",
    [b"", b"\xff\xfe", b"null", b"[" * 100_000, b'{"pid": 1}', b'{"pid": -1, "host": 3}', b"\0"],
)
def test_a_damaged_file_is_taken_over(tmp_path: Path, mode: tuple[str, ...], text: bytes) -> None:
    (tmp_path / LOCK).write_bytes(text)
    with hold(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("who", [{"host": "elsewhere"}, {"pid": os.getpid()}])
def test_only_what_may_be_alive_is_in_the_way(
    tmp_path: Path, mode: tuple[str, ...], who: dict[str, int | str]
) -> None:
    """Nobody knows of a process elsewhere; a container gives every process the same number."""
    holder = {"pid": 1, "host": socket.gethostname(), "since": "2020-01-01T00:00:00+00:00"}
    (tmp_path / LOCK).write_bytes(seal(holder))
    if mode:
        assert "process 1 on" in refusal(tmp_path)
    (tmp_path / LOCK).write_bytes(seal(holder | who))
    if mode and "host" in who:
        assert "on elsewhere" in refusal(tmp_path)
        return
    with hold(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["since"] > "2020"
    assert [*tmp_path.iterdir()] == []


def test_a_damaged_file_of_a_living_process_still_keeps_others_out(tmp_path: Path) -> None:
    with process(HOLDER, tmp_path):
        (tmp_path / LOCK).write_bytes(b"garbage")
        assert "another process, which its lock does not name, is writing it" in refusal(tmp_path)


@pytest.mark.parametrize("code", ["ENOLCK", "ENOTSUP", "ENOSYS", "EOPNOTSUPP"])
def test_no_locks_by_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    make_lockless(monkeypatch, getattr(errno, code))
    with process(HOLDER, tmp_path, "lockless") as holder:
        assert f"process {holder.pid} on" in refusal(tmp_path)


def test_neither_locks_nor_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no")

    make_lockless(monkeypatch)
    monkeypatch.setattr(os, "link", refuse)
    assert "neither locks nor hard links" in refusal(tmp_path)
    monkeypatch.undo()
    with hold(tmp_path):  # nothing stays behind of what was refused
        pass
    assert [*tmp_path.iterdir()] == []


def test_another_failure_of_the_lock_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_lockless(monkeypatch, errno.EIO)
    assert refusal(tmp_path) == f"cannot write {tmp_path}: {os.strerror(errno.EIO)}"


def test_a_forked_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A worker that outlives its killed parent must not keep a new run out."""
    script = LOCKLESS + (
        "import time\n"
        "with hold(folder):\n"
        "    if not os.fork():\n"
        "        print('held', os.getpid(), sep='\\n', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with process(script, tmp_path) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            assert f"process {parent.pid} on" in refusal(tmp_path)
            os.kill(parent.pid, signal.SIGKILL)
            parent.wait()
            os.kill(child, 0)
            with hold(tmp_path):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_forked_process_that_ends_takes_no_lock_away(tmp_path: Path) -> None:
    script = LOCKLESS + (
        "with hold(folder):\n"
        "    if child := os.fork():\n"
        "        os.waitpid(child, 0)\n"
        "        print('held', flush=True)\n"
        "        sys.stdin.read()\n"
    )
    with process(script, tmp_path) as parent:
        assert f"process {parent.pid} on" in refusal(tmp_path)


def test_of_many_starters_one_holds_at_any_time(tmp_path: Path, mode: tuple[str, ...]) -> None:
    folder, starters = tmp_path / "run", 20
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", STARTER, str(folder), *mode]
    started = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(starters)
    ]
    try:
        for one in started:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        for one in started:
            assert one.stdin is not None
            one.stdin.write("\n")
            one.stdin.flush()
        total: dict[int, int] = {}
        for one in started:
            for code, count in json.loads(one.communicate(timeout=60)[0]).items():
                total[int(code)] = total.get(int(code), 0) + count
    finally:
        for one in started:
            one.kill()
            one.wait()
    # 10: held and died, 11: held and released, 12: refused; 14: was not alone; 13, 15: other errors
    assert {*total} <= {10, 11, 12}, total
    assert min(total.get(10, 0), total.get(11, 0)) > 5, total
    with hold(folder):
        pass


# ---- folders that cannot be held -----------------------------------------------------------------


def test_a_read_only_folder_is_one_line() -> None:
    with tempfile.TemporaryDirectory() as made:
        folder, root = Path(made), os.geteuid() == 0
        folder.chmod(0o555)
        if root:  # who may write everywhere
            os.seteuid(65534)
        try:
            assert refusal(folder) == f"cannot write {folder}: {os.strerror(errno.EACCES)}"
            assert "cannot write" in refusal(folder / "deeper")
        finally:
            if root:
                os.seteuid(0)


def test_what_is_no_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot write" in refusal(tmp_path / "file")
    assert "cannot write" in refusal(tmp_path / "file" / "deeper")
    assert "cannot write" in refusal(tmp_path / ("x" * 300))
    (tmp_path / "run" / LOCK).mkdir(parents=True)
    assert "cannot write" in refusal(tmp_path / "run")


def test_a_link_or_a_pipe_in_place_of_the_lock_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / LOCK).symlink_to(tmp_path / "precious")
    assert "cannot write" in refusal(tmp_path)
    assert (tmp_path / "precious").read_text() == "kept"
    (tmp_path / LOCK).unlink()
    os.mkfifo(tmp_path / LOCK)
    assert "is not a regular file: remove it" in refusal(tmp_path)


def test_a_folder_that_vanishes_is_no_error_at_the_end(
    tmp_path: Path, mode: tuple[str, ...]
) -> None:
    with hold(tmp_path / "run"):
        (tmp_path / "run").rename(tmp_path / "moved")
    with hold(tmp_path / "moved"):
        assert not (tmp_path / "run").exists()  # nor is it made again to be released


def test_a_lock_file_removed_by_hand_is_not_removed_from_another(tmp_path: Path) -> None:
    with hold(tmp_path):
        (tmp_path / LOCK).unlink()
        (tmp_path / LOCK).write_text("another's")
    assert (tmp_path / LOCK).read_text() == "another's"
