"""What draws by which seed, and runs that give the same bits again."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

import cl_clipfit.experiment.identity
from cl_clipfit import CLIPClassifier, CLIPStrategy, Seeds
from cl_clipfit.cli.app import main
from cl_clipfit.config.command import RunConfig
from cl_clipfit.data.orders import class_order, order_seed
from cl_clipfit.errors import UserError
from cl_clipfit.experiment.identity import config_of
from cl_clipfit.experiment.prepare import prepare
from cl_clipfit.report.display import ConsoleDisplay
from cl_clipfit.runtime.determinism import deterministic, exact_fp32, explain_nondeterminism
from tests.support.results import result as report_result
from tests.support.tiny import FROZEN, PLUGIN

SHORT = ["--scenario", "tiny-stream", "--limit", "5", "--epochs", "1"]
# Parameters that start at random values, some when it is built and some when it first selects; it
# notes what it draws and sees.
NOISY = """
import torch
from torch import nn
from cl_clipfit import CLIPStrategy

class Noisy(CLIPStrategy):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.model.early = nn.Parameter(torch.randn(3))
        self.own = torch.Generator().manual_seed(self.seeds.data)
        self.torch_seed = torch.initial_seed()
        self.order, self.images = [], []

    def trainable(self):
        if not hasattr(self.model, "late"):
            self.model.late = nn.Parameter(torch.randn(3))
            self.start = torch.cat([self.model.early, self.model.late]).tolist()
        return [self.model.early, self.model.late]

    def before_task(self):
        coming = torch.Generator()
        coming.set_state(torch.get_rng_state())
        self.coming = torch.rand(3, generator=coming).tolist()

    def training_logits(self, images):
        self.images += images.long().sum((1, 2, 3)).tolist()
        return super().training_logits(images)

    def compute_loss(self, logits, labels):
        self.order += labels.tolist()
        return sum(p.square().sum() for p in self.trainable())

    def after_task(self):
        draws = {"own": self.own, "crops": self.augmentation_draws, "global": None}
        drawn = {name: torch.rand(3, generator=g).tolist() for name, g in draws.items()}
        images = sorted(self.images)
        self.records.append({
            "order": self.order, "images": images, "start": self.start, "coming": self.coming,
            "tf32": [torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32],
            "seeds": [self.seeds.data, self.seeds.init, self.torch_seed],
            **drawn,
        })
        self.order, self.images = [], []
"""
SHUFFLED = """
import torch
from cl_clipfit import CLIPStrategy

class Shuffled(CLIPStrategy):
    def trainable(self):
        return [self.model.clip.visual.proj]

    def compute_loss(self, logits, labels):
        torch.zeros(3).put_(torch.tensor([0, 1]), torch.ones(2))
        return super().compute_loss(logits, labels)
"""


def run(output: Path, *arguments: str) -> tuple[Path, dict[str, Any]]:
    """Run a command of one run; return its folder and result."""
    assert main([*arguments, "--output", str(output)]) == 0
    (file,) = output.glob("*/result.json")
    return file.parent, json.loads(file.read_text())


@pytest.fixture
def noisy(tmp_path: Path) -> list[str]:
    """Return a command that runs NOISY."""
    (tmp_path / "noisy.py").write_text(NOISY)
    return [*SHORT, *PLUGIN, str(tmp_path / "noisy.py"), "--strategy", "noisy"]


def drawn(output: Path, command: list[str], *options: str) -> list[dict[str, list[Any]]]:
    """Return what NOISY noted in each run, a list over tasks of everything; runs by seed."""
    output = output / "".join(options)
    assert main([*command, *options, "--output", str(output)]) == 0
    results = [json.loads(file.read_text()) for file in sorted(output.glob("*/result.json"))]
    tasks = [result["merge"]["tasks"] for result in results]
    return [{key: [task[key] for task in one] for key in one[0]} for one in tasks]


def without_times(value: Any) -> Any:
    """Leave out of a result what differs from run to run."""
    if isinstance(value, list):
        return [without_times(one) for one in value]
    if not isinstance(value, dict):
        return value
    times = {"timings", "peak_memory_bytes", *(key for key in value if key.endswith("_seconds"))}
    return {key: without_times(one) for key, one in value.items() if key not in times}


def same_files(one: Path, two: Path) -> int:
    """Check that the files of two runs have equal bytes; return how many there are.

    Those that hold times, or hashes of such files, are left out.
    """
    kinds = ("csv", "png", "svg", "yaml")
    files = [*(one / "bank").iterdir(), *(file for kind in kinds for file in one.glob(f"*.{kind}"))]
    for file in files:
        assert file.read_bytes() == (two / file.relative_to(one)).read_bytes(), file
    return len(files)


# ---- one seed, or several -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "strategy",
    [
        [],
        ["--strategy", "mergetune:host=image-norms", "--set", "image-norms.augmentation=crop-flip"],
    ],
    ids=["initial values", "path points and crops"],
)
def test_seeds_that_say_what_the_seed_says_change_nothing(
    strategy: list[str], noisy: list[str], tmp_path: Path
) -> None:
    command = [*(noisy if not strategy else [*SHORT, *PLUGIN]), *strategy, "--seed", "3"]
    one, first = run(tmp_path / "one", *command)
    two, second = run(tmp_path / "two", *command, "--data-seed", "3", "--init-seed", "3")
    assert one.name == two.name  # with the same digest
    assert without_times(first) == without_times(second)
    assert first["merge"]["tasks"]
    assert same_files(one, two) >= 9  # a bank of two tasks and its index, and what one sees


def initial_values(seed: int) -> tuple[list[float], list[float]]:
    """Return the first draws of PyTorch's generator, which NOISY starts at, and what follows."""
    draws = torch.Generator().manual_seed(seed)
    values = [torch.randn(3, generator=draws) for _ in range(2)]
    return torch.cat(values).tolist(), torch.rand(3, generator=draws).tolist()


def test_one_seed_is_one_stream_of_draws(noisy: list[str], tmp_path: Path) -> None:
    """Initial values are the first draws, and training continues where they end."""
    (first,) = drawn(tmp_path, noisy, "--seed", "4")
    values, coming = initial_values(4)
    assert first["start"] == [values] * 2
    assert first["coming"][0] == coming
    (other,) = drawn(tmp_path, noisy, "--data-seed", "4", "--init-seed", "4")  # and seed 0
    assert other == first
    assert first["global"][0] != first["global"][1]


def test_each_seed_moves_its_own_draws(noisy: list[str], tmp_path: Path) -> None:
    init_1, init_2, one_seed = drawn(tmp_path, noisy, "--seed", "1", "2", "5", "--data-seed", "5")
    (again,) = drawn(tmp_path, noisy, "--seed", "9", "--init-seed", "1", "--data-seed", "5")
    (data_6,) = drawn(tmp_path, noisy, "--seed", "9", "--init-seed", "1", "--data-seed", "6")
    assert again == init_1  # whatever else the seed is
    for key in ("order", "crops", "own", "global"):  # training follows the data seed alone
        assert init_1[key] == init_2[key] != data_6[key]
    assert init_1["start"] == data_6["start"] == [initial_values(1)[0]] * 2
    assert init_2["start"] == [initial_values(2)[0]] * 2
    anew = torch.rand(3, generator=torch.Generator().manual_seed(6))
    assert data_6["coming"][0] == anew.tolist()
    # Generators of a method's own begin where they do in a run whose one seed is that of the data.
    for key in ("crops", "own"):
        assert one_seed[key] == init_1[key]


def test_shots_are_drawn_by_the_seed_of_the_run(noisy: list[str], tmp_path: Path) -> None:
    command = [*noisy, "--shots", "2"]
    base, other_seed = drawn(tmp_path, command, "--seed", "0", "1", "--data-seed", "5")
    (other_order,) = drawn(tmp_path, command, "--seed", "0", "--data-seed", "6")
    assert base["images"] == other_order["images"] != other_seed["images"]
    assert base["order"] != other_order["order"]


def test_a_method_is_given_both_seeds_and_torch_tells_its_own(
    noisy: list[str], tmp_path: Path
) -> None:
    (noted,) = drawn(tmp_path, noisy, "--data-seed", "5", "--init-seed", "2")
    assert noted["seeds"] == [[5, 2, 2]] * 2
    assert torch.initial_seed() == 5


def test_a_method_without_seeds_takes_that_of_torch(
    tiny: Callable[..., CLIPClassifier],
) -> None:
    torch.manual_seed(7)
    assert CLIPStrategy(model=tiny()).seeds == Seeds(7, 7)
    given = CLIPStrategy(model=tiny(), seeds=Seeds(data=1, init=2))
    drawn, expected = (
        torch.rand(3, generator=generator)
        for generator in (given.augmentation_draws, torch.Generator().manual_seed(1_000_004))
    )
    assert torch.equal(drawn, expected)


# ---- what is written down -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"run": 0, "class_order": None, "data_order": 0, "initialisation": 0}),
        (
            ["--seed", "4", "--class-order", "pycil-1993"],
            {"run": 4, "class_order": 1993, "data_order": 4, "initialisation": 4},
        ),
        (
            ["--class-order", "seed:8", "--data-seed", "2", "--init-seed", "3"],
            {"run": 0, "class_order": 8, "data_order": 2, "initialisation": 3},
        ),
    ],
)
def test_a_result_names_all_seeds_and_its_config_repeats_them(
    options: list[str], expected: dict[str, Any], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder, result = run(tmp_path, *FROZEN, *options)
    assert result["seeds"] == expected
    assert result["seed"] == expected["run"]
    assert result["deterministic"] is False
    config = yaml.safe_load((folder / "config.yaml").read_text())
    given = {key: config[key] for key in ("data_seed", "init_seed") if key in config}
    wanted = {"data_seed": expected["data_order"], "init_seed": expected["initialisation"]}
    assert given == {key: seed for key, seed in wanted.items() if seed != expected["run"]}
    capsys.readouterr()
    again = run(tmp_path, "--config", str(folder / "config.yaml"), *PLUGIN)
    assert again == (folder, result)
    assert "complete, shown again" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["seed:0", "seed:12", "pycil-1993", "seed:4294967296", "natural"])
def test_an_order_has_a_seed_where_it_is_a_permutation_by_it(name: str) -> None:
    import numpy as np

    seed = order_seed(name)
    if seed is not None:
        assert class_order(name, 9) == np.random.RandomState(seed).permutation(9).tolist()
    else:
        assert name in ("natural", "seed:4294967296")


_TODAY = {
    "version", "scenario", "data", "stream", "templates", "probes",
    "strategy", "host", "recipe", "seed", "model", "device", "precision", "layout",
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "further"),
    [
        ({}, {}),
        ({"data_seed": 0, "init_seed": 0, "on_nan": "stop", "deterministic": False}, {}),
        ({"resume": "runs/x", "force_resume": True}, {}),
        ({"data_seed": 1}, {"data_seed": 1}),
        ({"seed": [2], "init_seed": 0}, {"init_seed": 0}),
        ({"deterministic": True}, {"deterministic": True}),
        ({"on_nan": "skip"}, {"on_nan": "skip"}),
    ],
)
def test_new_settings_name_a_run_only_where_they_are_not_the_default(
    options: dict[str, Any], further: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folders of runs without them keep their names."""
    hashed: list[dict[str, Any]] = []

    def settings_hash(settings: dict[str, Any]) -> str:
        hashed.append(settings)
        return "0" * 8

    monkeypatch.setattr(cl_clipfit.experiment.identity, "settings_hash", settings_hash)
    config = RunConfig(
        scenario="tiny-stream", strategy=["zero-shot"], model="mini", plugin=PLUGIN[1:], **options
    )
    prepared = prepare(config, ConsoleDisplay(Console(quiet=True), quiet=True))
    prepared.folder(prepared.plans[0])
    assert set(hashed[0]) == _TODAY | set(further)
    written = config_of(prepared.stream, prepared.plans[0], prepared.command)
    names = {"data_seed", "init_seed", "deterministic", "on_nan", "resume", "force_resume"}
    for found in (hashed[0], written):
        assert {key: found[key] for key in names & set(found)} == further


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data-seed", "-1"], "--data-seed: input should be greater than or equal to 0"),
        (["--init-seed", "x"], "--init-seed: input should be a valid integer"),
        (["--on-nan", "warn"], "--on-nan: input should be 'stop' or 'skip'"),
        (["--force-resume"], "--force-resume: it needs --resume FOLDER, which is missing"),
        (["--resume", "x", "--fresh"], "--resume: a run is either resumed or repeated"),
    ],
)
def test_wrong_settings_are_refused_in_a_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {message}")
    assert printed.count("\n") == 1


# ---- deterministic kernels ----------------------------------------------------------------------

# Of `put_`, which has no such kernel on a CPU either.
UNKNOWN_ORDER = (torch.tensor([0, 1]), torch.ones(2))


def state() -> tuple[Any, ...]:
    """Return all that `deterministic` changes."""
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.deterministic, cudnn.benchmark, os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )  # fmt: skip


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize(
    ("given", "within"),
    [(None, ":4096:8"), (":16:8", ":16:8"), (":0:0", ":4096:8")],
)
def test_deterministic_holds_for_a_block_and_leaves_everything_as_it_was(
    given: str | None, within: str, error: type[BaseException] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if given is not None:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", given)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = state()
    try:
        with deterministic(True):
            inside = state()
            with deterministic(False):  # asks for nothing
                assert state() == inside
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt) as caught:
        assert type(caught) is error
    assert inside == (True, False, True, False, within)
    assert state() == before


def test_a_run_computes_in_exact_fp32_and_leaves_tf32_as_it_was(
    noisy: list[str], tmp_path: Path
) -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32, matmul.allow_tf32 = True, True
    (noted,) = drawn(tmp_path, noisy)
    assert noted["tf32"] == [[False, False]] * 2
    assert (cudnn.allow_tf32, matmul.allow_tf32) == (True, True)
    with pytest.raises(ZeroDivisionError), exact_fp32():
        assert (cudnn.allow_tf32, matmul.allow_tf32) == (False, False)
        1 / 0  # noqa: B018
    assert (cudnn.allow_tf32, matmul.allow_tf32) == (True, True)
    cudnn.allow_tf32, matmul.allow_tf32 = before


def test_deterministic_names_the_operation_that_has_no_such_kernel() -> None:
    torch.zeros(3).put_(*UNKNOWN_ORDER)
    with pytest.raises(UserError) as caught, deterministic(True):
        torch.zeros(3).put_(*UNKNOWN_ORDER)
    assert str(caught.value) == (
        "--deterministic: put_ has no deterministic kernel here:"
        " omit --deterministic, or use --device cpu"
    )
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"), deterministic(True):
        torch.dot(torch.zeros(2), torch.zeros(3))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("kthvalue CUDA does not have a deterministic implementation, but you set"),
            "kthvalue CUDA has no deterministic kernel",
        ),
        (  # of a worker process
            RuntimeError("Caught\nRuntimeError: put_ does not have a deterministic implementation"),
            "--deterministic: put_ has no deterministic kernel",
        ),
        (
            RuntimeError(
                "Deterministic behavior was enabled [...] but this operation is not deterministic"
                " because it uses CuBLAS [...] CUBLAS_WORKSPACE_CONFIG=:4096:8"
            ),
            "CUBLAS_WORKSPACE_CONFIG=:4096:8 before the program starts",
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (ValueError("x does not have a deterministic implementation"), None),
    ],
)
def test_only_errors_of_determinism_are_explained(error: Exception, said: str | None) -> None:
    text = explain_nondeterminism(error)
    if said is None:
        assert text is None
    else:
        assert text is not None
        assert said in text
        assert "omit --deterministic, or use --device cpu" in text


def test_a_deterministic_run_gives_the_same_bits_twice(tmp_path: Path) -> None:
    command = [*SHORT, *PLUGIN, "--strategy", "image-norms", "--shots", "2"]
    before = state()
    one, first = run(tmp_path / "one", *command, "--deterministic")
    two, second = run(tmp_path / "two", *command, "--deterministic")
    free, _ = run(tmp_path / "free", *command)
    assert state() == before
    assert first["deterministic"] is True
    assert yaml.safe_load((one / "config.yaml").read_text())["deterministic"] is True
    assert one.name == two.name != free.name
    assert without_times(first) == without_times(second)
    assert same_files(one, two) >= 9


def test_a_method_without_a_deterministic_kernel_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shuffled.py").write_text(SHUFFLED)
    command = [*SHORT, *PLUGIN, str(tmp_path / "shuffled.py"), "--strategy", "shuffled"]
    assert run(tmp_path / "free", *command)[1]["deterministic"] is False
    capsys.readouterr()
    assert main([*command, "--deterministic", "--output", str(tmp_path / "out")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert re.search(
        r"strategy shuffled failed in task 1 \(shuffled.py, line \d+\): --deterministic: \S*put_\S*"
        " has no deterministic kernel here: omit --deterministic, or use --device cpu$",
        line,
    )
    assert not list((tmp_path / "out").glob("*/result.json"))


# ---- figures ------------------------------------------------------------------------------------

DRAW = """
import json, sys
from pathlib import Path
from cl_clipfit.report import figures
results, folder = json.load(sys.stdin), Path(sys.argv[1])
figures.plot_run(results[0], folder / "curves")
figures.plot_changes(results[0], folder / "what_moved")
figures.plot_comparison(results, folder / "comparison")
"""


def test_figures_of_two_processes_have_equal_bytes(tmp_path: Path) -> None:
    results = [report_result(name, seed) for name in ("zero-shot", "a", "b") for seed in (0, 1)]
    for name in ("1", "2"):  # another order of every set of strings
        subprocess.run(
            [sys.executable, "-c", DRAW, str(tmp_path / name)], input=json.dumps(results[2:]),
            text=True, check=True, env={**os.environ, "PYTHONHASHSEED": name},
        )  # fmt: skip
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    kinds = ("png", "svg")
    figures = ("comparison", "curves", "what_moved")
    assert files == sorted(f"{name}.{kind}" for name in figures for kind in kinds)
    for file in files:
        data = (tmp_path / "1" / file).read_bytes()
        assert data == (tmp_path / "2" / file).read_bytes(), file
        assert not re.search(rb"20\d\d-\d\d-\d\d|<dc:date>|tIME", data), file
