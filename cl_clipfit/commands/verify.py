"""`run.py verify`: check a run's files against its manifest, and its numbers against its tables."""

import itertools
import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cl_clipfit import metrics
from cl_clipfit.config.command import RECIPE_OPTIONS, read_config
from cl_clipfit.errors import UserError, is_file, printable, program
from cl_clipfit.report.display import ConsoleDisplay
from cl_clipfit.storage.files import csv_text, read_bytes
from cl_clipfit.storage.lock import writer
from cl_clipfit.storage.manifest import MANIFEST, check_manifest
from cl_clipfit.storage.result import RESULT, read_result
from cl_clipfit.storage.run_folder import BANK, BANK_EVAL, CONFIG, MATRIX, MERGED_FROM

TABLES = ("accuracy_matrix", "all_classes_matrix", "task_aware_matrix")
_ROUNDING = 1e-9  # percent
_MOST_SHOWN = 100  # problems of one check
_SEEDS = {"data_seed": "data_order", "init_seed": "initialisation"}  # names in a result, by option
Outcome = tuple[str, list[str]]  # of a check: a line if it passes, and the problems
Result = Mapping[str, Any]


def verify_run(path: Path, out: Console, err: Console, replay: bool = False) -> None:
    """Check a finished run, and print a line for each check that it passes.

    Args:
        path: folder of the run; nothing in it is changed.
        out: where checks that pass are printed.
        err: where problems are printed, one per line.
        replay: also train a task again and compare.

    Raises:
        UserError: there is no run, or at least one problem.
    """
    if not any(is_file(path / name) for name in (CONFIG, RESULT, MANIFEST)):
        raise UserError(f"{path}: not a run folder: it has no {CONFIG}")
    _check_ended(path)
    problems: list[str] = []
    for passed, failures in _checks(path, replay, err):
        problems += failures
        for text in failures[:_MOST_SHOWN]:
            _say(err, f"problem: {text}")
        if len(failures) > _MOST_SHOWN:
            _say(err, f"problem: and {len(failures) - _MOST_SHOWN:,} more")
        if not failures:
            _say(out, passed)
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) != 1)}"
        raise UserError(f"{path}: {count}, the first: {problems[0]}")


def _check_ended(path: Path) -> None:
    """Refuse a run that has not written its manifest yet."""
    if os.path.lexists(path / MANIFEST) or os.path.lexists(path / RESULT):
        return
    if who := writer(path):
        raise UserError(f"{path}: the run is in progress: {who} is writing it: verify it later")
    raise UserError(
        f"{path}: this run was interrupted: repeat the command that started it, which resumes it"
    )


def _say(console: Console, text: str) -> None:
    line = printable(" ".join(text.split()))
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _checks(path: Path, replay: bool, err: Console) -> Iterator[Outcome]:
    yield _check_manifest(path)
    try:
        result = read_result(path / RESULT)
    except (UserError, RecursionError) as error:
        yield "", [str(error) if isinstance(error, UserError) else f"{RESULT} cannot be read"]
        return
    if result is None:
        yield "", [f"{RESULT} is missing or incomplete: repeat the command that started the run"]
        return
    checks: list[Callable[[Path, Result], Outcome]] = [
        _check_config, _check_bank, _check_tables, _check_metrics, _check_curves, _check_csv,
    ]  # fmt: skip
    for check in checks:
        try:
            yield check(path, result)
        except UserError as error:
            yield "", [str(error)]
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            # An edited result may contain anything.
            name, reason = check.__name__.removeprefix("_check_"), f"{type(error).__name__} {error}"
            yield "", [f"{RESULT} is not what a run writes: {name} cannot be checked: {reason}"]
    if replay:
        yield _replay(path, err)


def _replay(path: Path, err: Console) -> Outcome:
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


def _check_manifest(path: Path) -> Outcome:
    if problems := check_manifest(path):
        return "", problems
    count = read_bytes(path / MANIFEST).count(b"\n")
    return f"manifest: {count} files as written", []


def _check_config(path: Path, result: Result) -> Outcome:
    try:
        config = read_config(path / CONFIG, ignored=(MERGED_FROM,))
    except UserError as error:
        return "", [f"{path / CONFIG}: {error.reason}"]
    problems = []
    for key in ("strategy", "seed"):
        if config.get(key) != [result[key]]:
            problems.append(f"{CONFIG} has {key} {config.get(key)}, {RESULT} {result[key]}")
    for key, given, recorded in _recorded_settings(config, result):
        if given != recorded:
            problems.append(f"{CONFIG} has {key} {given}, {RESULT} {recorded}")
    return f"{CONFIG}: settings of {result['strategy']}, seed {result['seed']}", problems


def _recorded_settings(config: Result, result: Result) -> Iterator[tuple[str, Any, Any]]:
    """Yield each seed and recipe setting as the settings and as the result record it."""
    if (seeds := result.get("seeds")) is not None:  # older versions did not write them
        for key, name in _SEEDS.items():
            yield key, config.get(key, result["seed"]), seeds[name]
    recipe = result["recipe"] or {}
    for key in RECIPE_OPTIONS:
        if key in config:
            yield key, config[key], recipe.get(key)


def _check_bank(path: Path, result: Result) -> Outcome:
    model = result["model"]
    if result["recipe"] is None or "architecture" not in model:
        return "bank: none, because the run trains nothing that is kept", []
    from cl_clipfit.bank.store import DeltaBank

    bank = DeltaBank.open(path / BANK)
    bank.verify()
    problems = []
    if len(bank) != (tasks := len(result["accuracy_matrix"]) - 1):
        problems.append(f"the bank holds {len(bank)} tasks, {RESULT} is of {tasks}")
    base = bank.index["base"]
    if any(model[key] != base[key] for key in base):
        problems.append(f"the bank belongs to another model than {RESULT}")
    files = sum(len(record["files"]) for record in bank.index["tasks"])
    return f"bank: {len(bank)} tasks, {files} files as written", problems


def _check_csv(path: Path, result: Result) -> Outcome:
    matrix = result["accuracy_matrix"]
    header = ["after_task", *(f"task_{j}" for j in range(1, len(matrix[0]) + 1))]
    expected = csv_text(header, [[t, *row] for t, row in enumerate(matrix)])
    same = read_bytes(path / MATRIX) == expected.encode()
    return f"{MATRIX}: as in {RESULT}", [] if same else [f"{MATRIX} is not what {RESULT} says"]


# ---- numbers -------------------------------------------------------------------------------------


def _boards(path: Path, result: Result) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name and content of everything that has tables and metrics, the run's first."""
    yield RESULT, result
    for name, board in (result["merge"] or {}).get("compared", {}).items():
        yield f"{RESULT}, merge.compared.{name}", board
    if is_file(path / BANK_EVAL):
        try:
            modes = json.loads(read_bytes(path / BANK_EVAL))["modes"]
            boards = [*_boards_of_modes(modes)]
        except (ValueError, RecursionError, LookupError, TypeError) as error:
            raise UserError(f"{BANK_EVAL} is damaged: repeat {program()} bank eval") from error
        yield from boards


def _boards_of_modes(modes: list[dict[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, mode in enumerate(modes):
        where = f"{BANK_EVAL}, modes.{number}"
        yield where, mode
        if "chosen_labels" in mode:
            yield f"{where}.chosen_labels", mode["chosen_labels"]


def _samples(result: Result) -> list[int]:
    return [task["test_samples"] for task in result["tasks"]]


def _check_tables(path: Path, result: Result) -> Outcome:
    """Check that each accuracy, in percent, is a whole number of a task's test images, or None."""
    samples, problems, count = _samples(result), [], 0
    for where, board in _boards(path, result):
        rows = len(board["accuracy_matrix"])
        for name in TABLES:
            count += 1
            if len(board[name]) != rows or any(len(row) != len(samples) for row in board[name]):
                raise UserError(
                    f"{where}: {name} does not have {rows} rows of {len(samples)} tasks"
                )
            for t, row in enumerate(board[name]):
                for j, (cell, images) in enumerate(zip(row, samples, strict=True), 1):
                    unseen = name == "accuracy_matrix" and j > t
                    if not _is_share(cell, 0 if unseen else images):
                        problems.append(f"{where}: {name}, row {t}, task {j}: {cell} cannot be")
        seen = [*itertools.accumulate(samples, initial=0)]
        for t, cell in enumerate((board.get("joint") or {"stream": []})["stream"]):
            if not _is_share(cell, seen[t]):
                problems.append(f"{where}: joint.stream, row {t}: {cell} cannot be")
    return f"tables: {count}, every accuracy a whole number of test images", problems


def _is_share(value: Any, images: int) -> bool:
    """Return whether a value is a possible accuracy, in percent, on this many images."""
    if value is None or not images:
        return value is None and not images
    if not isinstance(value, float) or not 0 <= value <= 100:
        return False
    return value == 100.0 * round(value * images / 100) / images


def _check_metrics(path: Path, result: Result) -> Outcome:
    problems, count, absent = [], 0, dict[str, None]()
    for where, board in _boards(path, result):
        seen, all_classes, task_aware, probes = (board[name] for name in (*TABLES, "probes"))
        derived = metrics.summarize(
            seen, all_classes, task_aware, _samples(result), probes, board.get("joint")
        )
        present, lacking = _split(derived, board["metrics"])
        problems += _differences(f"{where}: metrics", board["metrics"], present, result)
        absent |= dict.fromkeys(lacking)
        count += len(present)
    return f"metrics: {count} re-derived{_describe_absent(absent)}", problems


def _check_curves(path: Path, result: Result) -> Outcome:
    problems, count, samples, absent = [], 0, _samples(result), dict[str, None]()
    for where, board in _boards(path, result):
        seen, all_classes, probes = (board[name] for name in (*TABLES[:2], "probes"))
        derived, lacking = _split(
            metrics.curves(seen, all_classes, samples, probes, board.get("joint")), board["curves"]
        )
        absent |= dict.fromkeys(lacking)
        written = {**board["curves"]}
        if board is result:
            # Its table is not kept: only range and granularity of its values can be checked.
            totals = [*itertools.accumulate(samples, initial=0)]
            for t, value in enumerate(written.pop("zero_shot")):
                if not _is_share(value, totals[min(t, len(samples))]):
                    problems.append(f"{where}: curves: zero_shot, task {t}: {value} cannot be")
        for name in {**written, **derived}:
            ours = dict(enumerate(derived.get(name, [])))
            theirs = dict(enumerate(written.get(name, [])))
            problems += _differences(f"{where}: curves: {name}", theirs, ours, result)
        count += len(derived)
    return f"curves: {count} re-derived{_describe_absent(absent)}", problems


def _split(
    derived: Mapping[str, Any], written: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return the derived numbers that a run has, and the names of those that it lacks."""
    present = {name: value for name, value in derived.items() if name in written}
    return present, [name for name in derived if name not in written]


def _describe_absent(names: Iterable[str]) -> str:
    listed = ", ".join(names)
    return f"; absent, as in runs of an older version: {listed}" if listed else ""


def _differences(
    where: str, written: Mapping[Any, Any], derived: Mapping[Any, float | None], result: Result
) -> list[str]:
    """Return a sentence for every number that differs from the derived one."""
    return [
        f"{where}: {key} is {written.get(key, 'missing')}, the tables give"
        f" {derived.get(key, 'no such number')}"
        for key in {**derived, **written}
        if key not in written
        or key not in derived
        or not _equal(written[key], derived[key], _tolerance(result))
    ]


def _tolerance(result: Result) -> float:
    """Return the allowed difference of two sums: since Python 3.12, `sum` compensates rounding."""
    versions: Sequence[str] = (result["environment"]["python"], platform.python_version())
    return 0.0 if len({version.split(".")[1] for version in versions}) == 1 else _ROUNDING


def _equal(written: Any, derived: float | None, tolerance: float) -> bool:
    if written is None or derived is None:
        return written is derived
    if not isinstance(written, float | int) or isinstance(written, bool):
        return False
    return math.isclose(written, derived, rel_tol=0, abs_tol=tolerance)
