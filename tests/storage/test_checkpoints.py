"""Checkpoints: what goes in comes out, damage is noticed, and a step after it is the same step."""

import collections
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cl_clipfit import CLIPClassifier, CLIPStrategy, Recipe, Source, build_scenario
from cl_clipfit.errors import UserError
from cl_clipfit.storage import checkpoints
from cl_clipfit.storage.checkpoints import (
    KEPT,
    Checkpoints,
    Part,
    UnsupportedError,
    pack,
    unpack,
)
from cl_clipfit.strategies.clipfit import ClipFit, ClipFitOptions
from cl_clipfit.strategies.mergetune import MergeTune, MergeTuneOptions
from cl_clipfit.training.journal import Journal
from cl_clipfit.training.snapshot import put, take
from tests.support.methods import TwoGroups

DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
)  # fmt: skip
FLOATS = (0.0, -0.0, 0.1, 5e-324, 1.7976931348623157e308, math.nan, math.inf, -math.inf)
TEXTS = ("", "a", '\x00\n"\\', "Zürich 猫", "\ud800", "tensor", "cpu", "dict")
Build = Callable[..., CLIPClassifier]


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal in type, order and every bit, NaN included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and one.device == other.device and bits(one) == bits(other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return bits(torch.tensor(one, dtype=torch.float64)) == bits(
            torch.tensor(other, dtype=torch.float64)
        )
    return bool(one == other)


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def draw(rng: random.Random, depth: int) -> Any:
    """Draw a value that a checkpoint holds."""
    kind = rng.randrange(9 if depth else 6)
    if kind == 0:
        return rng.choice((None, True, False, 0, -1, 2**80, -(2**63)))
    if kind == 1:
        return rng.choice(FLOATS)
    if kind == 2:
        return rng.choice(TEXTS)
    if kind < 6:
        shape = rng.choice(((), (0,), (3,), (2, 0, 4), (2, 3)))
        found = torch.randint(0, 256, shape).to(rng.choice(DTYPES))
        if found.is_floating_point() and found.numel():
            found.view(-1)[0] = rng.choice((math.nan, math.inf, -math.inf, -0.0))
        return found.T if found.dim() == 2 and rng.random() < 0.5 else found
    parts = [draw(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 6:
        return parts
    if kind == 7:
        return tuple(parts)
    keys = rng.sample([0, 1, -5, 10**12, *TEXTS], len(parts))
    return dict(zip(keys, parts, strict=True))


@pytest.fixture
def warned() -> list[str]:
    return []


@pytest.fixture
def files(tmp_path: Path, warned: list[str]) -> Checkpoints:
    return Checkpoints(tmp_path / "run", warned.append)


def listed(files: Checkpoints) -> list[Path]:
    return sorted(files.folder.iterdir()) if files.folder.is_dir() else []


# ---- what goes in comes out ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_a_state_comes_back_as_it_was(seed: int, files: Checkpoints, warned: list[str]) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    state = {str(number): draw(rng, 4) for number in range(12)}
    files.save(state)
    assert same(files.load(), state)
    assert warned == []


@pytest.mark.parametrize(
    "many",
    [
        list(range(-500, 500)), tuple(range(65)), set(range(1000)), collections.deque(range(99)),
        [2**63 - 1, -(2**63)] * 50, [2**63] * 100, [-(2**63) - 1] * 100, [True] * 100,
        [0, True] * 100, [*range(99), 0.5], [*range(99), None], [*range(99), torch.ones(2)],
    ],
    ids=lambda v: f"{type(v).__name__} {str(next(iter(v)))[:9]}",
)  # fmt: skip
def test_many_numbers_come_back_with_their_types(many: Any, files: Checkpoints) -> None:
    files.save({"a": many})
    loaded = files.load()
    assert loaded is not None and same(loaded["a"], many)
    assert type(loaded["a"]) is type(many)
    assert [type(item) for item in loaded["a"]] == [type(item) for item in many]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex128], ids=str)
def test_a_tensor_of_any_kind_is_kept_or_refused_before_it_is_written(
    dtype: torch.dtype, files: Checkpoints
) -> None:
    state = {"a": torch.arange(6).reshape(2, 3).to(dtype)}
    try:
        pack(state, {})
    except UnsupportedError:
        return
    files.save(state)
    assert same(files.load(), state)


@pytest.mark.parametrize(
    "value",
    [
        nn.Parameter(torch.zeros(2)),
        nn.Parameter(torch.zeros(2), requires_grad=False),
        torch.zeros(2, requires_grad=True),
        torch.zeros(2, requires_grad=True) * 2,
        torch.eye(3).to_sparse(),
        torch.zeros(2, device="meta"),
        object(), b"bytes", 1j, {1.5: 0}, {True: 0}, {None: 0}, range(3),
    ],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [{"a": (1, v)}]], ids=["bare", "within"])
def test_what_no_checkpoint_holds_is_refused(value: Any, wrap: Any, files: Checkpoints) -> None:
    with pytest.raises(UnsupportedError):
        pack(wrap(value), {})
    files.save({"a": 1})
    with pytest.raises(UnsupportedError):
        files.save({"a": wrap(value)})
    assert files.load() == {"a": 1}


@pytest.mark.parametrize(
    "value",
    [
        collections.defaultdict(list, {"a": [1]}), collections.Counter("aab"),
        collections.OrderedDict(a=1), np.float64(0.5), np.int64(3),
    ],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_a_subclass_comes_back_as_itself_or_is_refused(value: Any) -> None:
    """A defaultdict that came back as a dict would fail at its next new key."""
    tensors: dict[str, Tensor] = {}
    try:
        packed = pack(value, tensors)
    except UnsupportedError:
        return
    assert type(unpack(packed, tensors)) is type(value)


def test_a_packed_tensor_is_a_copy_of_its_part_alone() -> None:
    whole, tensors = torch.arange(1000.0), dict[str, Tensor]()
    packed = pack([whole[:3], whole[:3]], tensors)
    whole.zero_()
    assert same(unpack(packed, tensors), [torch.arange(3.0)] * 2)
    assert all(t.untyped_storage().nbytes() == 12 for t in tensors.values())


# ---- the last two, and damage --------------------------------------------------------------------


def test_the_last_two_are_kept(files: Checkpoints, warned: list[str]) -> None:
    assert files.load() is None
    for number in range(1, 12):
        files.save({"number": number, "bulk": torch.full((3,), number)})
        assert [int(p.name[:6]) for p in listed(files)] == list(
            range(max(1, number - 1), number + 1)
        )
    assert KEPT == 2
    again = Checkpoints(files.folder.parent, warned.append)  # as another process does
    found = again.load()
    assert found is not None
    assert found["number"] == 11
    again.save({"number": 12})
    assert [int(p.name[:6]) for p in listed(files)] == [11, 12]
    again.clear()
    assert not files.folder.exists()
    assert files.load() is None
    assert warned == []


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _rename(file: Path) -> None:
    file.rename(file.with_name(f"{file.name[:7]}{'0' * 64}.safetensors"))


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "flipped": _flip,
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "empty": lambda file: file.write_bytes(b""),
    "renamed": _rename,
    "folder": _folder,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_behind_a_damaged_one_the_one_before_is_used(
    damage: Callable[[Path], Any], files: Checkpoints, warned: list[str]
) -> None:
    for number in (1, 2):
        files.save({"number": number, "bulk": torch.zeros(100)})
    newest = listed(files)[-1]
    damage(newest)
    before = [p.name for p in listed(files)]
    found = files.load()
    assert found is not None
    assert found["number"] == 1
    assert len(warned) == 1
    assert "000002-" in warned[0]
    assert "\n" not in warned[0]
    assert [p.name for p in listed(files)] == before


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_one_does_not_push_out_a_whole_one(
    damage: Callable[[Path], Any], files: Checkpoints, warned: list[str]
) -> None:
    for number in (1, 2):
        files.save({"number": number, "bulk": torch.zeros(100)})
    damage(listed(files)[-1])
    files.load()
    files.save({"number": 3})
    damage(listed(files)[-1])
    found = files.load()
    assert found is not None
    assert found["number"] == 1
    files.save({"number": 4})
    files.save({"number": 5})
    assert [p.name[:6] for p in listed(files) if p.is_file()] == ["000004", "000005"]


def part(level: float) -> Part:
    return Part({"bulk": torch.full((100,), level), "text": "a"})


def numbers(files: Checkpoints) -> list[str]:
    """Return the numbers of the checkpoints there are, and a word for each part."""
    return [p.name[:6] if p.suffix == ".safetensors" else "part" for p in listed(files)]


def test_a_part_is_written_once_and_goes_when_nothing_names_it(
    files: Checkpoints, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write = checkpoints.write_atomic

    def noted(path: Path, data: bytes) -> None:
        written.append(path.suffix)
        write(path, data)

    monkeypatch.setattr(checkpoints, "write_atomic", noted)
    first, second, third = (part(level) for level in (1, 2, 3))
    for number in (1, 2, 3):
        files.save({"number": number, "start": first})
    assert sorted(numbers(files)) == ["000002", "000003", "part"]
    for number in (4, 5, 6):  # the last one with another part stays
        files.save({"number": number, "start": second})
    assert sorted(numbers(files)) == ["000003", "000005", "000006", "part", "part"]
    again = Checkpoints(files.folder.parent, warned.append)  # as another process does
    state = again.load()
    assert state is not None and state["number"] == 6
    assert same(state["start"].value, second.value)
    again.save({"number": 7, "start": state["start"]})
    assert sorted(numbers(files)) == ["000003", "000006", "000007", "part", "part"]
    assert written.count(".part") == 2
    for number in (8, 9):
        again.save({"number": number, "start": third})
    assert sorted(numbers(files)) == ["000007", "000008", "000009", "part", "part"]
    # Killed while it writes a part, or before the checkpoint that names it.
    (files.folder / f".{'0' * 64}.part.x8k2m9qz").write_bytes(b"half")
    (files.folder / f"{'0' * 64}.part").write_bytes(b"unnamed")
    again.clear()
    assert not files.folder.exists()
    assert warned == []


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_behind_a_damaged_part_the_one_before_is_used(
    damage: Callable[[Path], Any], files: Checkpoints, warned: list[str]
) -> None:
    files.save({"number": 1, "start": part(1)})
    before = set(listed(files))
    for number in (2, 3, 4):
        files.save({"number": number, "start": part(2)})
    (shared,) = [p for p in listed(files) if p.suffix == ".part" and p not in before]
    damage(shared)
    again = Checkpoints(files.folder.parent, warned.append)
    state = again.load()
    assert state is not None and state["number"] == 1
    assert same(state["start"].value, part(1).value)
    assert len(warned) == 2 and all(shared.name in line for line in warned)
    again.save({"number": 5, "start": part(3)})
    assert sorted(numbers(files))[:2] == ["000001", "000005"]
    state = Checkpoints(files.folder.parent, pytest.fail).load()
    assert state is not None and state["number"] == 5


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_where_none_is_whole_nothing_is_touched(
    damage: Callable[[Path], Any], files: Checkpoints, warned: list[str]
) -> None:
    for number in (1, 2):
        files.save({"number": number})
    for file in listed(files):
        damage(file)
    before = {p.name: p.read_bytes() if p.is_file() else None for p in listed(files)}
    with pytest.raises(UserError, match=r"none of the 2 checkpoints is intact.*--fresh") as caught:
        files.load()
    assert "\n" not in str(caught.value)
    assert len(warned) == 2
    assert {p.name: p.read_bytes() if p.is_file() else None for p in listed(files)} == before


def test_another_schema_is_named(files: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cl_clipfit.storage.checkpoints.SCHEMA", 99)
    files.save({"a": 1})
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"schema 99.*--fresh"):
        files.load()
    assert len(listed(files)) == 1


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.open"])
def test_a_failed_write_leaves_what_was_there(
    call: str, files: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for number in (1, 2):
        files.save({"number": number})
    before = listed(files)
    monkeypatch.setattr(call, full)
    with pytest.raises(UserError, match=r"cannot write .*No space left") as caught:
        files.save({"number": 3})
    monkeypatch.undo()
    assert "\n" not in str(caught.value)
    assert listed(files) == before
    found = files.load()
    assert found is not None
    assert found["number"] == 2


def test_a_write_that_is_stopped_leaves_no_rest(
    files: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second Ctrl-C comes in the midst of a write."""

    class Stop(BaseException):
        pass

    def stop(*_: Any) -> None:
        raise Stop

    files.save({"number": 1})
    before = listed(files)
    monkeypatch.setattr("os.fsync", stop)
    with pytest.raises(Stop):
        files.save({"number": 2})
    monkeypatch.undo()
    assert listed(files) == before


def test_the_rest_of_a_killed_write_goes_with_the_checkpoints(files: Checkpoints) -> None:
    files.save({"number": 1})
    (file,) = listed(files)
    # What `write_atomic` leaves of a process that is killed while it writes.
    file.with_name(f".{file.name}.x8k2m9qz").write_bytes(b"half")
    files.clear()
    assert not files.folder.exists()


def test_foreign_files_stay(files: Checkpoints, warned: list[str]) -> None:
    files.save({"number": 1})
    note = files.folder / "note.txt"
    note.write_text("mine")
    files.save({"number": 2})
    found = files.load()
    assert found is not None
    assert found["number"] == 2
    files.clear()
    assert listed(files) == [note]
    assert warned == []


# ---- a step after `put` is the step it would have been -------------------------------------------

RECIPES = {
    "sgd": Recipe(epochs=3, batch_size=8, lr=0.05, optimizer="sgd", weight_decay=0.01),
    "adamw": Recipe(epochs=3, batch_size=8, lr=0.01, weight_decay=0.01, schedule="epoch-cosine"),
    "crops": Recipe(epochs=3, batch_size=8, lr=0.01, augmentation="crop-flip"),
}


class Drawing(TwoGroups):
    """Draws from every generator there is, and remembers what it drew."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.drawn: list[tuple[float, ...]] = []
        self.own = torch.Generator().manual_seed(9)

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        factors = (
            random.random(), float(np.random.random()), random.gauss(0, 1),
            float(np.random.normal()), torch.rand(()).item(),
            torch.rand((), generator=self.own).item(),
        )  # fmt: skip
        self.drawn.append(factors)
        return super().compute_loss(logits, labels) * (1 + sum(factors[:2]))


def make(cls: Any, build: Build, source: Source, recipe: Recipe) -> CLIPStrategy:
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    kwargs: dict[str, Any] = {}
    if cls is MergeTune:
        cls = MergeTune.over(ClipFit)
        kwargs["options"] = MergeTuneOptions(landscape="off")
        kwargs["host_options"] = ClipFitOptions()
    return cls(model=build(), class_names=source.class_names, recipe=recipe, **kwargs)


class Killed(BaseException):
    """Stands for a kill."""


class KilledAt(Checkpoints):
    """Ends the process, so to speak, once so many checkpoints are written."""

    left = -1

    def save(self, state: dict[str, Any]) -> None:
        super().save(state)
        self.left -= 1
        if self.left == 0:
            raise Killed


def learn(strategy: CLIPStrategy, files: Checkpoints, source: Source) -> None:
    """Learn the first task, from where an earlier process came to."""
    files.folder.parent.mkdir(exist_ok=True)
    journal = Journal(files, strategy, [])
    journal.load()
    journal.begin_task(0, {})
    experience = build_scenario("s", source, tasks=2).benchmark.train_stream[0]
    strategy.train(experience, eval_streams=[])


def weights(strategy: CLIPStrategy) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in strategy.model.named_parameters()}


def draws(strategy: CLIPStrategy) -> dict[str, Any]:
    """Draw from every generator there is."""
    found: dict[str, Any] = {
        "python": [random.random(), random.gauss(0, 1)],
        "numpy": [float(np.random.random()), float(np.random.normal())],
        "torch": torch.rand(3),
    }
    names = ("augmentation_draws", "path_draws", "own")
    found |= {n: torch.rand(3, generator=vars(strategy)[n]) for n in names if n in vars(strategy)}
    if "distillation" in vars(strategy):
        found["prompts"] = torch.rand(3, generator=vars(strategy)["distillation"].generator)
    return found


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
@pytest.mark.parametrize("cls", [Drawing, ClipFit, MergeTune])
def test_steps_after_put_are_those_without(
    cls: Any, recipe: Recipe, tiny: Build, source: Source, tmp_path: Path
) -> None:
    whole = make(cls, tiny, source, recipe)
    before = weights(whole)
    learn(whole, Checkpoints(tmp_path / "whole", pytest.fail), source)
    expected, drawn = weights(whole), draws(whole)
    assert not same(before, expected)

    for kill in (1, 2, 4):
        files = KilledAt(tmp_path / f"broken {kill}", pytest.fail)
        files.left = kill
        with pytest.raises(Killed):
            learn(make(cls, tiny, source, recipe), files, source)
        again = make(cls, tiny, source, recipe)
        for seed in (random.seed, np.random.seed, torch.manual_seed):  # as another process has them
            seed(1234)  # type: ignore[operator]
        learn(again, files, source)
        assert same(weights(again), expected), kill
        assert same(draws(again), drawn), kill
        if cls is Drawing:
            assert vars(again)["drawn"] == vars(whole)["drawn"]


def test_put_brings_back_every_generator(tiny: Build, source: Source) -> None:
    strategy = make(MergeTune, tiny, source, RECIPES["crops"])
    snapshot = take(strategy)
    assert {"augmentation_draws", "path_draws"} <= set(snapshot["rng"]["generators"])
    expected = draws(strategy)
    assert not same(draws(strategy), expected)
    put(strategy, snapshot)
    assert same(draws(strategy), expected)
    put(strategy, snapshot)  # a second time: the first has not changed it
    assert same(draws(strategy), expected)


def test_a_snapshot_does_not_follow_the_training(tiny: Build, source: Source) -> None:
    strategy = make(Drawing, tiny, source, RECIPES["adamw"])
    stream = build_scenario("s", source, tasks=2).benchmark.train_stream
    strategy.train(stream[0], eval_streams=[])
    snapshot = take(strategy, optimizer=True)
    tensors: dict[str, Tensor] = {}
    copied = unpack(pack(snapshot, tensors), tensors)
    strategy.train(stream[1], eval_streams=[])
    assert same(snapshot, copied)


class Remembering(TwoGroups):
    """Remembers in a way that is not plain values; what it remembers steers its loss."""

    kind = "set"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        made = {
            "set": set, "deque": collections.deque,
            "array": lambda: np.zeros(6), "float64": lambda: np.float64(0.0),
        }  # fmt: skip
        self.seen: Any = made[self.kind]()

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        factor = 1.0 + (float(np.sum(self.seen)) if self.kind in ("array", "float64") else
                        len(self.seen))  # fmt: skip
        for label in labels.tolist():
            if self.kind == "set":
                self.seen.add(label)
            elif self.kind == "deque":
                self.seen.append(label)
            elif self.kind == "float64":
                self.seen = np.float64(self.seen + 0.1)
            else:
                self.seen[label] += 1
        return super().compute_loss(logits, labels) * factor


@pytest.mark.parametrize("kind", ["set", "deque", "array", "float64"])
def test_what_a_method_remembers_is_kept_or_it_is_said(
    kind: str, tiny: Build, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run resumed without it would end with other numbers, and nobody would know."""
    monkeypatch.setattr(Remembering, "kind", kind)
    recipe, files = RECIPES["sgd"], KilledAt(tmp_path / "broken", pytest.fail)
    whole = make(Remembering, tiny, source, recipe)
    learn(whole, Checkpoints(tmp_path / "whole", pytest.fail), source)
    files.left = 3
    with pytest.raises(Killed):
        learn(make(Remembering, tiny, source, recipe), files, source)
    again = make(Remembering, tiny, source, recipe)
    learn(again, files, source)
    said = [text for text in again.warnings if "seen" in text]
    assert said or same(weights(again), weights(whole))


def test_records_with_a_numpy_number_are_kept(tiny: Build, source: Source) -> None:
    strategy = make(Drawing, tiny, source, RECIPES["sgd"])
    strategy.records.append({"loss": np.float64(0.5)})  # JSON takes it, so a run ends well with it
    snapshot = take(strategy)
    again = make(Drawing, tiny, source, RECIPES["sgd"])
    put(again, snapshot)
    assert again.records == [{"loss": 0.5}]


def test_a_method_may_hold_anything_while_it_trains(
    tiny: Build, source: Source, tmp_path: Path
) -> None:
    """What cannot be saved must not stop a run that never needs it again."""
    strategy = make(Drawing, tiny, source, RECIPES["sgd"])
    strategy.__dict__["sparse"] = torch.eye(3).to_sparse()
    strategy.__dict__["wide"] = torch.zeros(2, dtype=torch.complex128)
    strategy.__dict__["shape"] = torch.zeros(2, device="meta")
    endless: list[Any] = []
    endless.append(endless)
    strategy.__dict__["endless"] = endless
    learn(strategy, Checkpoints(tmp_path, pytest.fail), source)


def test_a_method_says_what_is_not_its_state(tiny: Build, source: Source) -> None:
    class Saying(Drawing):
        def state_dict(self) -> dict[str, Any]:
            return {n: v for n, v in super().state_dict().items() if n != "bulk"}

    strategy = make(Saying, tiny, source, RECIPES["sgd"])
    strategy.bulk, strategy.drawn = [torch.zeros(1000)], [(1.0,)]  # type: ignore[attr-defined]
    snapshot = take(strategy)
    assert snapshot["state"] == {"drawn": [(1.0,)]}
    assert snapshot["lost"] == []
    other = make(Saying, tiny, source, RECIPES["sgd"])
    put(other, snapshot)
    assert vars(other)["drawn"] == [(1.0,)] and "bulk" not in vars(other)
    with pytest.raises(ValueError, match="must not hold model"):
        other.load_state_dict({"model": None})


def test_a_continued_method_keeps_the_solutions_out_of_its_checkpoints(
    tiny: Build, source: Source
) -> None:
    strategy: Any = make(MergeTune, tiny, source, RECIPES["sgd"])
    strategy._solution = [{"w": torch.zeros(1000)}]  # plain values, as a bank loaded whole
    snapshot = take(strategy)
    assert not {"_solution", "_task_started"} & {*snapshot["state"], *snapshot["lost"]}
