"""`run.py verify`: is a run what was written, and do its numbers follow from its tables?"""

import itertools
import json
import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cl_clipfit import metrics
from cl_clipfit.config.command import read_config
from cl_clipfit.errors import UserError, is_file, printable
from cl_clipfit.report.display import ConsoleDisplay
from cl_clipfit.storage.files import csv_text, read_bytes
from cl_clipfit.storage.manifest import MANIFEST, check_manifest
from cl_clipfit.storage.result import RESULT, read_result

CONFIG, MATRIX, BANK_EVAL = "config.yaml", "accuracy_matrix.csv", "bank-eval.json"
TABLES = ("accuracy_matrix", "all_classes_matrix", "task_aware_matrix")
_MERGED_FROM = "merged_from"  # finished.MERGED_FROM, beside which PyTorch is imported
_ROUNDING = 1e-9  # percent
_MOST_SHOWN = 100  # problems of one check
_SEEDS = {"data_seed": "data_order", "init_seed": "initialisation"}  # of a result, by option
_RECIPE = ("epochs", "batch_size", "lr")  # what `config.yaml` has of a recipe, under its own names
Found = tuple[str, list[str]]  # what is well, and what is not
Result = Mapping[str, Any]


def verify_run(path: Path, out: Console, err: Console, replay: bool = False) -> None:
    """Check a finished run, and print a line for each check that it passes.

    Args:
        path: folder of the run; nothing in it is changed.
        out: where the checks that pass go.
        err: where every problem goes, on a line of its own.
        replay: train a task of it again too.

    Raises:
        UserError: no run, or at least one problem.
    """
    if not any(is_file(path / name) for name in (CONFIG, RESULT, MANIFEST)):
        raise UserError(f"{path}: not a run folder: it has no {CONFIG}")
    problems: list[str] = []
    for good, bad in _checks(path, replay, err):
        problems += bad
        for text in bad[:_MOST_SHOWN]:
            _say(err, f"problem: {text}")
        if len(bad) > _MOST_SHOWN:
            _say(err, f"problem: and {len(bad) - _MOST_SHOWN:,} more")
        if not bad:
            _say(out, good)
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) != 1)}"
        raise UserError(f"{path}: {count}, the first: {problems[0]}")


def _say(console: Console, text: str) -> None:
    line = printable(" ".join(text.split()))
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _checks(path: Path, replay: bool, err: Console) -> Iterator[Found]:
    yield _check_manifest(path)
    try:
        result = read_result(path / RESULT)
    except (UserError, RecursionError) as error:
        yield "", [str(error) if isinstance(error, UserError) else f"{RESULT} cannot be read"]
        return
    if result is None:
        yield "", [f"{RESULT} is missing or not complete: repeat the command that began the run"]
        return
    checks: list[Callable[[Path, Result], Found]] = [
        _check_config, _check_bank, _check_tables, _check_metrics, _check_curves, _check_csv,
    ]  # fmt: skip
    for check in checks:
        try:
            yield check(path, result)
        except UserError as error:
            yield "", [str(error)]
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            # Whoever edits a result may leave anything in it.
            name, reason = check.__name__.removeprefix("_check_"), f"{type(error).__name__} {error}"
            yield "", [f"{RESULT} is not what a run writes: {name} cannot be checked: {reason}"]
    if replay:
        yield _replay(path, err)


def _replay(path: Path, err: Console) -> Found:
    from cl_clipfit.commands.retrain import retrain_first_task
    from cl_clipfit.experiment.reopen import was_deterministic
    from cl_clipfit.runtime.determinism import deterministic

    try:
        with deterministic(was_deterministic(path)):
            problems = retrain_first_task(path, ConsoleDisplay(err))
    except UserError as error:
        problems = [str(error)]
    return "replay: a task trained again gives what was written", problems


# ---- files ---------------------------------------------------------------------------------------


def _check_manifest(path: Path) -> Found:
    if problems := check_manifest(path):
        return "", problems
    count = read_bytes(path / MANIFEST).count(b"\n")
    return f"manifest: {count} files as written", []


def _check_config(path: Path, result: Result) -> Found:
    try:
        config = read_config(path / CONFIG, besides=(_MERGED_FROM,))
    except UserError as error:
        return "", [f"{path / CONFIG}: {error.reason}"]
    problems = []
    for key in ("strategy", "seed"):
        if config.get(key) != [result[key]]:
            problems.append(f"{CONFIG} has {key} {config.get(key)}, {RESULT} {result[key]}")
    for key, given, found in _said_twice(config, result):
        if given != found:
            problems.append(f"{CONFIG} has {key} {given}, {RESULT} {found}")
    return f"{CONFIG}: settings of {result['strategy']}, seed {result['seed']}", problems


def _said_twice(config: Result, result: Result) -> Iterator[tuple[str, Any, Any]]:
    """Yield what settings say of seeds and recipe, and what the result says of it."""
    if (seeds := result.get("seeds")) is not None:  # older versions wrote none
        for key, name in _SEEDS.items():
            yield key, config.get(key, result["seed"]), seeds[name]
    recipe = result["recipe"] or {}
    for key in _RECIPE:
        if key in config:
            yield key, config[key], recipe.get(key)


def _check_bank(path: Path, result: Result) -> Found:
    model = result["model"]
    if result["recipe"] is None or "architecture" not in model:
        return "bank: none, for the run trains nothing that is kept", []
    from cl_clipfit.bank.store import DeltaBank

    bank = DeltaBank.open(path / "bank")
    bank.verify()
    problems = []
    if len(bank) != (tasks := len(result["accuracy_matrix"]) - 1):
        problems.append(f"the bank holds {len(bank)} tasks, {RESULT} is of {tasks}")
    base = bank.index["base"]
    if any(model[key] != base[key] for key in base):
        problems.append(f"the bank belongs to another model than {RESULT}")
    files = sum(len(record["files"]) for record in bank.index["tasks"])
    return f"bank: {len(bank)} tasks, {files} files as written", problems


def _check_csv(path: Path, result: Result) -> Found:
    matrix = result["accuracy_matrix"]
    header = ["after_task", *(f"task_{j}" for j in range(1, len(matrix[0]) + 1))]
    wanted = csv_text(header, [[t, *row] for t, row in enumerate(matrix)])
    same = read_bytes(path / MATRIX) == wanted.encode()
    return f"{MATRIX}: as in {RESULT}", [] if same else [f"{MATRIX} is not what {RESULT} says"]


# ---- numbers -------------------------------------------------------------------------------------


def _boards(path: Path, result: Result) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield all that has tables and metrics, and where: the run's own, then what is beside it."""
    yield RESULT, result
    for name, board in (result["merge"] or {}).get("compared", {}).items():
        yield f"{RESULT}, merge.compared.{name}", board
    if is_file(path / BANK_EVAL):
        try:
            modes = json.loads(read_bytes(path / BANK_EVAL))["modes"]
            boards = [*_boards_of_modes(modes)]
        except (ValueError, RecursionError, LookupError, TypeError) as error:
            raise UserError(f"{BANK_EVAL} is damaged: repeat run.py bank eval") from error
        yield from boards


def _boards_of_modes(modes: list[dict[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, mode in enumerate(modes):
        where = f"{BANK_EVAL}, modes.{number}"
        yield where, mode
        if "chosen_labels" in mode:
            yield f"{where}.chosen_labels", mode["chosen_labels"]


def _samples(result: Result) -> list[int]:
    return [task["test_samples"] for task in result["tasks"]]


def _check_tables(path: Path, result: Result) -> Found:
    """An accuracy is a whole number of a task's test images, in percent, or there is none."""
    samples, problems, count = _samples(result), [], 0
    for where, board in _boards(path, result):
        rows = len(board["accuracy_matrix"])
        for name in TABLES:
            count += 1
            if len(board[name]) != rows or any(len(row) != len(samples) for row in board[name]):
                raise UserError(f"{where}: {name} has not {rows} rows of {len(samples)} tasks")
            for t, row in enumerate(board[name]):
                for j, (cell, images) in enumerate(zip(row, samples, strict=True), 1):
                    unseen = name == "accuracy_matrix" and j > t
                    if not _is_share(cell, 0 if unseen else images):
                        problems.append(f"{where}: {name}, row {t}, task {j}: {cell} cannot be")
    return f"tables: {count}, every accuracy a whole number of test images", problems


def _is_share(value: Any, images: int) -> bool:
    """Return whether an accuracy in percent is possible with this number of images."""
    if value is None or not images:
        return value is None and not images
    if not isinstance(value, float) or not 0 <= value <= 100:
        return False
    return value == 100.0 * round(value * images / 100) / images


def _check_metrics(path: Path, result: Result) -> Found:
    problems, count, absent = [], 0, dict[str, None]()
    for where, board in _boards(path, result):
        seen, all_classes, task_aware, probes = (board[name] for name in (*TABLES, "probes"))
        derived = metrics.summarize(seen, all_classes, task_aware, _samples(result), probes)
        present, lacking = _split(derived, board["metrics"])
        problems += _differences(f"{where}: metrics", board["metrics"], present, result)
        absent |= dict.fromkeys(lacking)
        count += len(present)
    return f"metrics: {count} re-derived{_say_absent(absent)}", problems


def _check_curves(path: Path, result: Result) -> Found:
    problems, count, samples, absent = [], 0, _samples(result), dict[str, None]()
    for where, board in _boards(path, result):
        seen, all_classes, probes = (board[name] for name in (*TABLES[:2], "probes"))
        derived, lacking = _split(
            metrics.curves(seen, all_classes, samples, probes), board["curves"]
        )
        absent |= dict.fromkeys(lacking)
        written = {**board["curves"]}
        if board is result:
            # Of a model whose table is not kept: only how many images it was right on can be told.
            totals = [*itertools.accumulate(samples, initial=0)]
            for t, value in enumerate(written.pop("zero_shot")):
                if not _is_share(value, totals[min(t, len(samples))]):
                    problems.append(f"{where}: curves: zero_shot, task {t}: {value} cannot be")
        for name in {**written, **derived}:
            ours = dict(enumerate(derived.get(name, [])))
            theirs = dict(enumerate(written.get(name, [])))
            problems += _differences(f"{where}: curves: {name}", theirs, ours, result)
        count += len(derived)
    return f"curves: {count} re-derived{_say_absent(absent)}", problems


def _split(
    derived: Mapping[str, Any], written: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return what a run has of the derived numbers, and the names that came after its version."""
    present = {name: value for name, value in derived.items() if name in written}
    return present, [name for name in derived if name not in written]


def _say_absent(names: Iterable[str]) -> str:
    listed = ", ".join(names)
    return f"; absent, as in runs of an older version: {listed}" if listed else ""


def _differences(
    where: str, written: Mapping[Any, Any], derived: Mapping[Any, float | None], result: Result
) -> list[str]:
    """Return a sentence for every number that is not the one that was derived, bit for bit."""
    return [
        f"{where}: {key} is {written.get(key, 'missing')}, the tables give"
        f" {derived.get(key, 'no such number')}"
        for key in {**derived, **written}
        if key not in written
        or key not in derived
        or not _equal(written[key], derived[key], _tolerance(result))
    ]


def _tolerance(result: Result) -> float:
    """Return what a sum may differ by: from Python 3.12 on, `sum` rounds floats once."""
    versions: Sequence[str] = (result["environment"]["python"], platform.python_version())
    return 0.0 if len({version.split(".")[1] for version in versions}) == 1 else _ROUNDING


def _equal(written: Any, derived: float | None, tolerance: float) -> bool:
    if written is None or derived is None:
        return written is derived
    if not isinstance(written, float | int) or isinstance(written, bool):
        return False
    return math.isclose(written, derived, rel_tol=0, abs_tol=tolerance)
