"""The manifest of a run folder, against sha256sum itself and against every kind of damage."""

import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cl_clipfit.errors import UserError
from cl_clipfit.storage.manifest import MANIFEST, check_manifest, write_manifest

FILES = {
    "result.json": b'{"complete": true}\n',
    "config.yaml": b"seed: [0]\n",
    "curves.png": bytes(range(64)),
    "bank/index.json": b'{"tasks": []}\n',
    "bank/task-001.safetensors": b"\x00\xff" * 20,
    "empty.txt": b"",
}
LEFT_OUT = {
    ".lock": b"{}",
    ".result.json.a1b2": b"half",
    "bank/.index.json.c3": b"half",
    "checkpoints/task-001.pt": b"state",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a manifest."""
    made = tmp_path / "run"
    for name, data in {**FILES, **LEFT_OUT}.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(data)
    write_manifest(made)
    return made


def only(folder: Path) -> str:
    """Return the one thing that is wrong with a folder."""
    (problem,) = check_manifest(folder)
    assert problem.isprintable()
    return problem


def test_the_format_is_that_of_sha256sum(folder: Path) -> None:
    lines = [f"{hashlib.sha256(FILES[n]).hexdigest()}  {n}\n" for n in sorted(FILES)]
    assert (folder / MANIFEST).read_bytes() == "".join(lines).encode()
    assert check_manifest(folder) == []
    write_manifest(folder)  # does not list itself
    assert check_manifest(folder) == []


def test_what_is_left_out_may_come_change_and_go(folder: Path) -> None:
    (folder / ".lock").write_bytes(b"another")
    (folder / ".result.json.a1b2").unlink()
    (folder / "bank/.new").touch()
    (folder / "checkpoints/deeper").mkdir()
    (folder / "checkpoints/deeper/task-002.pt").touch()
    assert check_manifest(folder) == []


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum")
def test_sha256sum_reads_it_whatever_the_names(tmp_path: Path) -> None:
    names = ["back\\slash", "new\nline", "é ü 図", " blank ", "*star", "\\n", "#c", "a\\\nb"]
    for name in names:
        (tmp_path / name).write_text(name)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")).write_text("no UTF-8")
    write_manifest(tmp_path)
    assert check_manifest(tmp_path) == []
    command = ["sha256sum", "--check", "--strict", "--quiet", MANIFEST]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "new\nline").write_text("other")
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 1
    assert only(tmp_path).startswith(r"'new\nline' is changed")


def test_a_carriage_return_in_a_name_is_escaped(tmp_path: Path) -> None:
    (tmp_path / "a\r").touch()  # older versions of sha256sum do not read such lines
    write_manifest(tmp_path)
    assert (tmp_path / MANIFEST).read_bytes() == b"\\" + b"%s  a\\r\n" % (
        hashlib.sha256(b"").hexdigest().encode()
    )
    assert check_manifest(tmp_path) == []


def test_every_file_that_differs_gets_a_sentence(folder: Path) -> None:
    (folder / "config.yaml").write_bytes(b"seed: [1]\n")
    (folder / "bank/index.json").unlink()
    (folder / "bank/more.json").touch()
    was, now = (hashlib.sha256(b"seed: [%d]\n" % n).hexdigest()[:12] for n in (0, 1))
    assert check_manifest(folder) == [
        "bank/index.json is missing",
        "bank/more.json is not in the manifest",
        f"config.yaml is changed: its SHA-256 is {now}, expected {was}",
    ]


def test_a_missing_manifest_says_how_to_get_one(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    assert "is missing" in only(folder)
    assert "--fresh" in only(folder)
    assert "cannot read" in only(folder / "absent")


def test_links_are_reported_and_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").touch()
    (folder / "out").symlink_to(tmp_path / "outside")
    assert only(folder).startswith("out is a symbolic link")
    write_manifest(folder)
    assert b"out" not in (folder / MANIFEST).read_bytes()
    assert only(folder).startswith("out is a symbolic link")
    (folder / "out").unlink()
    (folder / "config.yaml").rename(tmp_path / "config.yaml")
    (folder / "config.yaml").symlink_to(tmp_path / "config.yaml")  # of the same content
    assert only(folder).startswith("config.yaml is a symbolic link")
    (folder / "config.yaml").unlink()
    os.mkfifo(folder / "config.yaml")  # to read it would wait for ever
    assert only(folder).startswith("config.yaml is a symbolic link or not a regular")


def test_a_linked_manifest_is_refused_and_replaced(folder: Path, tmp_path: Path) -> None:
    (folder / MANIFEST).rename(tmp_path / "list")
    (folder / MANIFEST).symlink_to(tmp_path / "list")
    assert "is a symbolic link" in only(folder)
    before = (tmp_path / "list").read_bytes()
    (folder / "more").touch()
    write_manifest(folder)
    assert (tmp_path / "list").read_bytes() == before
    assert check_manifest(folder) == []


HASH = "0" * 64


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (f"{HASH}  ../up\n", "names ../up, which is outside"),
        (f"{HASH}  bank/../../up\n", "outside"),
        (f"{HASH}  /etc/passwd\n", "outside"),
        (f"{HASH}  config.yaml\n", "repeats config.yaml"),
        (f"{HASH}  ./config.yaml\n", "which a manifest does not cover"),
        (f"{HASH}  bank//index.json\n", "which a manifest does not cover"),
        (f"{HASH}  .lock\n", "which a manifest does not cover"),
        (f"{HASH}  checkpoints/x\n", "which a manifest does not cover"),
        (f"{HASH}  {MANIFEST}\n", "which a manifest does not cover"),
        (f"{HASH[:-1]}  x\n", "is damaged"),
        (f"{HASH} *x\n", "is damaged"),
        ("# a remark\n", "is damaged"),
        ("\n", "is damaged"),
        ("\0", "is damaged"),
    ],
)
def test_a_line_that_nobody_wrote(folder: Path, line: str, problem: str) -> None:
    with (folder / MANIFEST).open("a") as file:
        file.write(line)
    assert f"line {len(FILES) + 1} " in only(folder)
    assert problem in only(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"\n".join(reversed(data.split(b"\n")[:-1])) + b"\n",
        lambda data: data[:-1],
        lambda data: b"\\" + data,
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data.upper(),
        lambda data: b"",
        lambda data: b"\n",
    ],
)
def test_only_the_canonical_form_will_do(folder: Path, change: Callable[[bytes], bytes]) -> None:
    file = folder / MANIFEST
    file.write_bytes(change(file.read_bytes()))
    assert check_manifest(folder)


def test_any_changed_byte_and_any_truncation_is_noticed(folder: Path) -> None:
    draws = random.Random(0)
    files = [folder / name for name in (*FILES, MANIFEST) if (folder / name).stat().st_size]
    for trial in range(600):
        file = draws.choice(files)
        before = file.read_bytes()
        data = bytearray(before)
        place = draws.randrange(len(data))
        if trial % 3:
            data[place] ^= draws.randrange(1, 256) if trial % 2 else 1 << draws.randrange(8)
        else:
            del data[place:]
        file.write_bytes(data)
        problems = check_manifest(folder)
        assert problems, f"{file.name}, byte {place}: {bytes(data[place:][:1])!r}"
        assert file == folder / MANIFEST or len(problems) == 1
        file.write_bytes(before)
    assert check_manifest(folder) == []


def test_every_byte_of_the_manifest_counts(folder: Path) -> None:
    file = folder / MANIFEST
    before = file.read_bytes()
    for place in range(len(before)):
        for bit in (0x20, 0x01):  # 0x20 turns a letter into its capital
            data = bytearray(before)
            data[place] ^= bit
            file.write_bytes(data)
            assert check_manifest(folder), place


def test_weights_that_became_a_file_of_holes_are_not_hashed(folder: Path) -> None:
    os.truncate(folder / "bank/task-001.safetensors", 1 << 40)
    assert "1,099,511,627,776 bytes are holes" in only(folder)


def test_a_manifest_of_nothing_but_damage_is_not_read_to_its_end(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"\n" * 300_000)
    problems = check_manifest(folder)
    assert len(problems) == 100
    assert problems[-1] == f"{MANIFEST}, line 100: the last 299,901 lines were not read"
    os.truncate(folder / MANIFEST, 17 << 20)
    assert "that are accepted" in only(folder)


def test_a_folder_that_cannot_be_read_or_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*absent"):
        write_manifest(tmp_path / "absent")
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_manifest(tmp_path)
