"""The bank gives back what was put in, bit for bit, or says which file is wrong."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from cl_clipfit.bank import index as index_module
from cl_clipfit.bank import store
from cl_clipfit.bank.store import DeltaBank
from cl_clipfit.clip import CLIPClassifier, ModelIdentity
from cl_clipfit.errors import UserError
from cl_clipfit.storage.files import read_bytes, row, seal, sha256, unseal
from cl_clipfit.training.selection import select_clipfit
from tests.support.banks import BASE, make, values


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return list(found) == list(wanted) and all(
        found[n].dtype == v.dtype and found[n].shape == v.shape
        and found[n].numpy().tobytes() == v.numpy().tobytes()
        for n, v in wanted.items()
    )  # fmt: skip


def test_round_trip_bit_for_bit(tmp_path: Path) -> None:
    special = torch.tensor([-0.0, float("nan"), float("inf"), 1e-45, 1 / 3, -1e38])
    first = {"y": special, "x": torch.randn(3, 4).T}  # not contiguous, not in sorted order
    second = {"y": special.flip(0), "x": torch.full((4, 3), 0.1)}
    labels = {"labels": torch.tensor([2**40, -1]), "means": torch.randn(2, 5)}
    made = DeltaBank.create(tmp_path / "bank", BASE, "clipfit", ["{}", "a {}"])
    made.append(first, ["a"], statistics=labels)
    made.append(second, ["b", "c"], parents=["1", "2"], host=first)
    bank = DeltaBank.open(tmp_path / "bank")
    assert len(bank) == 2 and bank.index == made.index
    bank.verify()
    assert same(bank.load(1), {"y": special, "x": first["x"].contiguous()})
    assert same(bank.load(2), second)
    assert same(bank.load(2, "host"), {n: v.contiguous() for n, v in first.items()})
    found = bank.load(1, "statistics")
    assert set(found) == set(labels) and all(same({n: found[n]}, {n: labels[n]}) for n in labels)
    delta = bank.delta(2)
    assert (delta.task, delta.classes, delta.parents) == (2, ["b", "c"], ["1", "2"])
    difference = bank.delta(2).difference(
        {"x": torch.full((4, 3), 0.25), "y": special, "z": special}
    )
    assert torch.equal(difference["x"], torch.full((4, 3), 0.1) - 0.25)
    assert bank.index["templates"] == ["{}", "a {}"]
    assert bank.index["selection"] == {"y": [6], "x": [4, 3]}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_widens_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    bank = DeltaBank.create(tmp_path, BASE, "clipfit")
    parameter = torch.nn.Parameter(torch.randn(50).to(dtype))
    bank.append({"a": parameter, "b": parameter}, ["x"])  # one memory under two names
    found = bank.load(1)["a"]
    assert found.dtype == torch.float32 and not found.requires_grad
    assert torch.equal(found.to(dtype), parameter) and torch.equal(found, parameter.float())


def test_bad_selections_are_refused(tmp_path: Path) -> None:
    bank = make(tmp_path, 1)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    a, z = values(1)["a.b"], values(1)["z.bias"]
    for wrong in ({}, {"a.b": a}, {"a.b": a, "z.bias": a}, {"a.b": a, "z.bias": z, "c": z}):
        with pytest.raises(ValueError, match="values of task 2 do not fit"):
            bank.append(wrong, ["a"])
        with pytest.raises(ValueError, match="host of task 2 do not fit"):
            bank.append(values(2), ["a"], host=wrong)
    with pytest.raises(ValueError, match="float64"):
        bank.append({"a.b": a, "z.bias": z.double()}, ["a"])
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before
    with pytest.raises(ValueError, match="trained no parameter"):
        DeltaBank.create(tmp_path / "new", BASE, "x").append({}, ["a"])
    with pytest.raises(ValueError, match="needs weights_sha256"):
        DeltaBank.create(tmp_path / "new", {"architecture": "a", "pretrained": "b"}, "x")


def damages(file: Path, data: bytes) -> Iterator[int]:
    """Change each single byte of a file, cut it at every length, lengthen it; yield the place.

    In place: a file that is written anew goes to the disk every time, which is slow.
    """
    with file.open("r+b", buffering=0) as handle:
        for i, byte in enumerate(data):
            os.pwrite(handle.fileno(), bytes([byte ^ 1 << i % 8]), i)
            yield i
            os.pwrite(handle.fileno(), data[i : i + 1], i)
        for length in reversed(range(len(data))):
            handle.truncate(length)
            yield length
        for longer in (data + b"\n", data.replace(b":", b": ", 1)):
            os.pwrite(handle.fileno(), longer, 0)
            yield len(longer)


@pytest.mark.parametrize("name", [
    "index.json", "task-001.safetensors", "task-001-host.safetensors",
    "task-001-statistics.safetensors", "task-002.safetensors",
])  # fmt: skip
def test_every_damaged_byte_is_noticed(tmp_path: Path, name: str) -> None:
    make(tmp_path)
    file = tmp_path / name
    data, tried = file.read_bytes(), 0
    for _ in damages(file, data):
        with pytest.raises(UserError) as caught:
            DeltaBank.open(tmp_path).verify()
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)
        tried += 1
    assert tried == 2 * len(data) + 2
    file.unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        DeltaBank.open(tmp_path).verify()
    file.write_bytes(data)
    DeltaBank.open(tmp_path).verify()


def test_any_rewriting_of_a_sealed_value_is_noticed() -> None:
    data = seal({"a": [1, "é"], "b": None})
    assert unseal(data) == {"a": [1, "é"], "b": None}
    twice = data.replace(b' "b"', b' "a": 0,\n "b"')
    blanks, letters = data.replace(b"\n ", b"\n  "), data.replace(b"u00e9", b"u00E9")
    for other in (twice, blanks, letters, b"[]", b"{}", b"", b"\xff", b"[" * 100_000):
        with pytest.raises((ValueError, RecursionError)):
            unseal(other)


class KilledError(Exception):
    """Stands for a kill."""


def test_rows_of_a_sealed_value_are_rendered_one_by_one() -> None:
    records = [{"name": "é\n", "list": [1, 2.5, None]}, {"name": "b"}]
    data = seal({"a": {"b": []}, "c": 1}, records=[row(r) for r in records], none=[])
    assert unseal(data) == {"a": {"b": []}, "c": 1, "records": records, "none": []}
    lines = [line.strip(" ,") for line in data.decode().splitlines()]
    assert all(row(record) in lines for record in records)
    for position in range(len(data)):
        with pytest.raises(ValueError):
            unseal(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(ValueError):
            unseal(data[:position])


def test_a_task_is_rendered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand tasks the index has half a megabyte, and is written after each."""
    rendered: list[int] = []
    monkeypatch.setattr(
        index_module, "row", lambda record: rendered.append(record["task"]) or row(record)
    )
    bank = make(tmp_path, tasks=5)
    assert rendered == [1, 2, 3, 4, 5]
    bank.keep(3)
    assert rendered == [1, 2, 3, 4, 5]
    opened = DeltaBank.open(tmp_path)
    assert opened.index == bank.index
    opened.append(values(9), ["z"])
    bank = DeltaBank.open(tmp_path)
    bank.verify()
    assert [len(bank), bank.delta(4).classes] == [4, ["z"]]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_kill_leaves_the_earlier_bank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, after: bool
) -> None:
    make(tmp_path, 1)
    write, calls = store.write_atomic, 0

    def killed(path: Path, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls < call or after:
            write(path, data)
        if calls == call:
            raise KilledError

    bank = DeltaBank.open(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        for module in (store, index_module):
            patch.setattr(module, "write_atomic", killed)
        bank.append(values(5), ["c"], (), values(6), {"labels": torch.tensor([5])})
    assert calls == call
    kept = DeltaBank.open(tmp_path)
    kept.verify()
    done = call == 4 and after  # the index was there already
    assert len(kept) == (2 if done else 1)
    assert same(kept.load(1), values(1))
    if not done:
        bank.append(values(7), ["c"])  # the same object goes on as well
        kept = DeltaBank.open(tmp_path)
        kept.verify()
        assert same(kept.load(2), values(7))
        with pytest.raises(UserError, match="has no host, only values"):
            kept.load(2, "host")


def test_a_failing_disk_leaves_no_half_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = make(tmp_path, 1)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        bank.append(values(2), ["b"])
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_create_removes_an_earlier_bank_and_nothing_else(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    bank = DeltaBank.create(tmp_path, BASE, "other")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["index.json", "notes.txt"]
    assert len(bank) == len(DeltaBank.open(tmp_path)) == 0
    with pytest.raises(UserError, match="no task 1: it holds 0"):
        bank.load(1)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    bank = make(tmp_path)
    for task in (0, 3, -1):
        with pytest.raises(UserError, match=rf"no task {task}: it holds 2$"):
            bank.load(task)
    with pytest.raises(UserError, match=r"index\.json is missing"):
        DeltaBank.open(tmp_path / "nowhere")


def rewrite(folder: Path, data: bytes, **changes: Any) -> None:
    """Replace a file and make the index agree, as a bug or another program might."""
    (folder / "task-001.safetensors").write_bytes(data)
    index = unseal((folder / "index.json").read_bytes()) | changes
    index["tasks"][0]["files"]["values"] |= {"sha256": sha256(data), "bytes": len(data)}
    (folder / "index.json").write_bytes(seal(index))


def test_a_file_that_contradicts_its_index_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    for tensors, message in (
        (values(1) | {"z.bias": torch.ones(4)}, r"z\.bias is \[4\], expected \[3\]"),
        ({"a.b": torch.ones(2, 2)}, r"z\.bias is missing"),
        (values(1) | {"c": torch.ones(1)}, r"c is \[1\], expected none"),
    ):
        rewrite(tmp_path, save(tensors))
        with pytest.raises(UserError, match=rf"task-001\.safetensors does not fit.*{message}"):
            DeltaBank.open(tmp_path).verify()
    rewrite(tmp_path, b"something else")
    with pytest.raises(UserError, match=r"task-001\.safetensors is not a safetensors file"):
        DeltaBank.open(tmp_path).load(1)
    rewrite(tmp_path, save(values(1)), schema=2)
    with pytest.raises(UserError, match=r"index\.json has schema 2, this version reads 1"):
        DeltaBank.open(tmp_path)


def reseal(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change an index, with the right hash, as whoever makes a bank can."""
    index = unseal((folder / "index.json").read_bytes())
    change(index)
    (folder / "index.json").write_bytes(seal(index))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"selection": {"a": [10**30]}, "tasks": []}, r"selection\.a\.0 is wrong"),
        ({"selection": {"a": [1] * 17}, "tasks": []}, r"selection\.a is wrong"),
        ({"selection": {"a" * 9999: [-1]}, "tasks": []}, r"selection\.a+ is wrong"),
        ({"schema": {"a": ["b"] * 9999}}, "has schema dict, this version reads 1"),
        ({"schema": "1" * 9999}, "has schema 1+, this version reads 1"),
    ],
    ids=["size", "dimensions", "name", "schema", "long schema"],
)
def test_an_index_of_sizes_that_no_model_has_is_refused_in_a_short_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    make(tmp_path)
    reseal(tmp_path, lambda index: index.update(change))
    with pytest.raises(UserError, match=message) as caught:
        DeltaBank.open(tmp_path)
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "selection", "message"),
    [
        ("values", {"a": [2]}, "does not fit its index: it has 1,099,511,627,776 bytes"),
        ("values", {"a": [1 << 38]}, "is damaged, it is mostly holes"),
        ("statistics", None, "is damaged, it is mostly holes"),
    ],
)
def test_a_file_of_holes_is_not_read_though_its_index_has_its_size(
    tmp_path: Path, kind: Any, selection: Any, message: str
) -> None:
    make(tmp_path, tasks=1)

    def change(index: dict[str, Any]) -> None:
        index["selection"] = selection or index["selection"]
        index["tasks"][0]["files"][kind]["bytes"] = 1 << 40

    reseal(tmp_path, change)
    name = "task-001.safetensors" if kind == "values" else "task-001-statistics.safetensors"
    os.truncate(tmp_path / name, 1 << 40)
    with pytest.raises(UserError, match=message):
        DeltaBank.open(tmp_path).load(1, kind)


def test_what_memory_cannot_hold_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path) -> bytes:
        raise MemoryError

    (tmp_path / "large").write_bytes(b"12345")
    monkeypatch.setattr(Path, "read_bytes", full)
    with pytest.raises(UserError, match="large has 5 bytes, which do not fit in memory"):
        read_bytes(tmp_path / "large")


def test_another_model_is_refused(tmp_path: Path, tiny: Callable[..., CLIPClassifier]) -> None:
    bank = make(tmp_path)
    bank.check_base(BASE)
    bank.check_base(ModelIdentity("arch", "the same from a file", "ab" * 32))
    others = (BASE | {"architecture": "b"}, ModelIdentity("arch", "tag", "cd" * 32), None)
    for other in others:
        with pytest.raises(UserError, match=r"index\.json: this bank belongs to arch \(tag, wei"):
            bank.check_base(other)
    with pytest.raises(UserError, match="the model is unknown"):
        bank.apply(tiny(), 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_values_go_in_and_out_of_a_model(
    tmp_path: Path, tiny: Callable[..., CLIPClassifier], dtype: torch.dtype
) -> None:
    trained, bank = tiny().to(dtype), DeltaBank.create(tmp_path, dict.fromkeys(BASE), "clipfit")
    chosen = select_clipfit(trained.clip)
    selection = trained.train_only([*chosen.text, *chosen.image])
    states = []
    for _ in range(2):
        with torch.no_grad():
            for parameter in selection.values():
                parameter.add_(torch.randn_like(parameter))
        bank.append(selection, ["a"])
        states.append({n: v.clone() for n, v in trained.state_dict().items()})

    model = tiny().to(dtype)
    pretrained = {n: v.clone() for n, v in model.state_dict().items()}

    def holds(state: dict[str, Tensor]) -> bool:
        return all(torch.equal(v, state[n]) for n, v in model.state_dict().items())

    bank.remove(model)
    assert holds(pretrained)
    for task in (1, 2, 1):
        bank.apply(model, task)
        assert holds(states[task - 1]) and not holds(pretrained)
    bank.remove(model)
    assert holds(pretrained)
    (tmp_path / "task-002.safetensors").unlink()
    with pytest.raises(UserError):
        bank.apply(model, 2)
    assert holds(pretrained)


# ---- banks of many tasks -------------------------------------------------------------------------


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "SEGMENT", 3)


def grown(folder: Path, tasks: int) -> DeltaBank:
    bank = make(folder, tasks=0)
    for task in range(1, tasks + 1):
        bank.append(values(task), [f"class {task}"])
    return bank


def test_a_long_index_is_written_in_segments_that_stay(
    tmp_path: Path, short_segments: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, int]] = []
    write = index_module.write_atomic

    def noted(path: Path, data: bytes) -> None:
        written.append((path.name, len(data)))
        write(path, data)

    monkeypatch.setattr(index_module, "write_atomic", noted)
    bank = grown(tmp_path, 8)
    indices = [name for name, _ in written if name.startswith("index-")]
    assert indices == ["index-0001.json", "index-0002.json"]
    assert bank.index_files() == [tmp_path / n for n in (*indices, "index.json")]
    assert len(unseal((tmp_path / "index.json").read_bytes())["tasks"]) == 2
    opened = DeltaBank.open(tmp_path)
    opened.verify()
    assert opened.index == bank.index and len(opened) == 8
    assert [opened.delta(t).classes for t in (1, 4, 8)] == [["class 1"], ["class 4"], ["class 8"]]
    opened.append(values(9), ["class 9"])
    assert DeltaBank.open(tmp_path).index_files()[-2].name == "index-0003.json"


@pytest.mark.parametrize("kept", [0, 1, 3, 4, 6, 7])
def test_a_bank_in_segments_is_cut_anywhere(
    tmp_path: Path, short_segments: None, kept: int
) -> None:
    grown(tmp_path, 8)
    bank = DeltaBank.open(tmp_path)
    bank.keep(kept)
    assert DeltaBank.open(tmp_path).index == bank.index
    for task in range(kept + 1, 8):
        bank.append(values(10 * task), ["new"])
    opened = DeltaBank.open(tmp_path)
    opened.verify()
    assert opened.index == bank.index and len(opened) == 7
    whole = grown(tmp_path, kept).index["tasks"]
    assert opened.index["tasks"][:kept] == whole


def test_every_damage_of_a_segment_is_noticed(tmp_path: Path, short_segments: None) -> None:
    grown(tmp_path, 7)
    first, second = (tmp_path / f"index-000{n}.json" for n in (1, 2))
    data, other = first.read_bytes(), second.read_bytes()
    wrong = [data[:-1], data + b"\n", data.replace(b"class 2", b"class 7"), b"", other]
    wrong.append(seal({"first": 1}, tasks=[row({"task": 1})]))
    wrong.append(seal({"tasks": 5}))
    for damaged in wrong:
        first.write_bytes(damaged)
        with pytest.raises(UserError, match=r"index-0001\.json is damaged"):
            DeltaBank.open(tmp_path)
    first.unlink()
    with pytest.raises(UserError, match=r"index-0001\.json is missing"):
        DeltaBank.open(tmp_path)
    first.write_bytes(data)
    assert len(DeltaBank.open(tmp_path)) == 7
    index = unseal((tmp_path / "index.json").read_bytes())
    for segments in ("x", [1], [{"sha256": 1, "bytes": 2}], [{"sha256": "a", "bytes": 1 << 50}]):
        (tmp_path / "index.json").write_bytes(seal(index | {"segments": segments}))
        with pytest.raises(UserError, match="not the index of a bank: segments"):
            DeltaBank.open(tmp_path)


@pytest.mark.parametrize("name", ["index-0002.json", "index.json"])
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_between_segment_and_index_leaves_a_whole_bank(
    tmp_path: Path, short_segments: None, monkeypatch: pytest.MonkeyPatch, name: str, after: bool
) -> None:
    bank, write = grown(tmp_path, 5), index_module.write_atomic

    def killed(path: Path, data: bytes) -> None:
        if path.name != name or after:
            write(path, data)
        if path.name == name:
            raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(index_module, "write_atomic", killed)
        bank.append(values(6), ["class 6"])
    done = name == "index.json" and after
    assert len(DeltaBank.open(tmp_path)) == (6 if done else 5) and len(bank) == 5
    bank.append(values(7), ["again"])  # the same object goes on
    opened = DeltaBank.open(tmp_path)
    opened.verify()
    assert (len(opened), opened.delta(6).classes) == (6, ["again"])


def test_a_bank_in_segments_is_shared_whole(tmp_path: Path, short_segments: None) -> None:
    bank, folder = grown(tmp_path / "a", 7), tmp_path / "b"
    bank.save_pretrained(folder)
    assert DeltaBank.from_pretrained(folder).index == bank.index
    grown(tmp_path / "c", 2).save_pretrained(folder)
    assert not list(folder.glob("index-*.json"))


def test_a_new_bank_removes_the_segments_of_the_earlier_one(
    tmp_path: Path, short_segments: None
) -> None:
    grown(tmp_path, 4)
    make(tmp_path, tasks=1)
    assert not list(tmp_path.glob("index-*.json"))
