"""`run.py bank eval` and `run.py merge`: other ways to use what a finished run has learned."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from cl_clipfit.bank.store import INDEX
from cl_clipfit.commands.evaluate import BankEvaluation, ModeResult
from cl_clipfit.commands.train import SAME_COMMAND, execute
from cl_clipfit.config.merge_settings import MODES, ModeSettings
from cl_clipfit.config.parsing import parse_settings
from cl_clipfit.errors import UserError, nearest
from cl_clipfit.experiment.identity import config_of
from cl_clipfit.experiment.recipes import make_settings
from cl_clipfit.experiment.reopen import MERGED_FROM, FinishedRun, open_run, was_deterministic
from cl_clipfit.experiment.run import Run
from cl_clipfit.experiment.run_plan import RunPlan
from cl_clipfit.merging.methods import check_settings, used_settings
from cl_clipfit.report.display import ConsoleDisplay, say
from cl_clipfit.report.tables import modes_csv, modes_table, results_table
from cl_clipfit.runtime.determinism import deterministic
from cl_clipfit.runtime.signals import Stopped
from cl_clipfit.storage.files import read_bytes, sha256, write_atomic, write_json
from cl_clipfit.storage.lock import hold
from cl_clipfit.storage.manifest import adding

CHOOSING = ("oracle", "routed")  # no single set of weights comes of these


def evaluate_bank(
    run: Path, modes: Sequence[str], settings: ModeSettings, out: Console, err: Console,
    device: str | None = None,
) -> list[ModeResult]:  # fmt: skip
    """Score a run's bank in several modes; `bank-eval.json` and `.csv` go into its folder.

    Raises:
        UserError: no finished run, a damaged bank, an unknown mode.
    """
    modes = MODES if list(modes) == ["all"] else modes
    for mode in modes:
        _check_mode(mode, MODES)
    check_settings("--mode", modes, settings)
    run = run.resolve()
    display = ConsoleDisplay(err)
    results = []
    with deterministic(was_deterministic(run)):
        finished = open_run(run, display, device)
        evaluation = BankEvaluation(finished, settings)
        for mode in dict.fromkeys(modes):
            display.note(f"bank eval: {mode}")
            results.append(evaluation.evaluate(mode))
    summaries = [result.summary() for result in results]
    with adding(run):
        write_json(run / "bank-eval.json", {"run": run.name, "modes": summaries})
        write_atomic(run / "bank-eval.csv", modes_csv(summaries))
    out.print(modes_table(finished.result, summaries))
    return results


def _check_mode(mode: str, known: Sequence[str], option: str = "--mode") -> None:
    if mode not in known:
        raise UserError(f"{option} {mode}: unknown. {nearest(mode, known)}")


def merge_run(
    run: Path, method: str, settings: ModeSettings, assignments: Sequence[str],
    out: Console, err: Console, *, device: str | None = None, fresh: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Merge a finished run's bank after every task, and leave the result as a run of its own.

    Args:
        run: folder of the run of a host.
        method: a mode of `bank eval` that gives one set of weights, or "mergetune".
        settings: of the modes.
        assignments: `mergetune.key=value`, settings of MERGETUNE.
        out: where results go.
        err: where progress goes.
        device: where to compute; default where the run was trained.
        fresh: repeat a merge that is already there.

    Raises:
        UserError: no finished run, a damaged bank, an unknown method, or wrong settings.
    """
    _check_mode(method, ["mergetune", *(m for m in MODES if m not in CHOOSING)], "--method")
    if assignments and method != "mergetune":
        raise UserError(f"--set {assignments[0]}: only --method mergetune takes settings so")
    check_settings("--method", [method], settings)
    run = run.resolve()
    display = ConsoleDisplay(err)
    try:
        with deterministic(was_deterministic(run)):
            return _merge(run, method, settings, assignments, out, display, device, fresh)
    except Stopped as stopped:
        stopped.advice = SAME_COMMAND  # and not --resume, which knows nothing of the host's bank
        raise


def _merge(
    run: Path, method: str, settings: ModeSettings, assignments: Sequence[str],
    out: Console, display: ConsoleDisplay, device: str | None, fresh: bool,
) -> dict[str, Any]:  # fmt: skip
    finished = open_run(run, display, device)
    plan = _continued(finished, assignments) if method == "mergetune" else finished.plan
    plan = replace(plan, label=f"{finished.result['label']} + {method}")
    own = used_settings(method, settings)
    # The index of the bank holds the hash of every file.
    bank = sha256(read_bytes(finished.bank.folder / INDEX))
    origin: dict[str, Any] = {"method": method, "settings": own, "run": run.name, "bank": bank}
    prepared = finished.prepared
    folder = prepared.folder(plan, f"{finished.plan.strategy.name}+{method}", **origin)
    folder.check_links()
    result = None if fresh else folder.finished_result()
    if result is None:
        with hold(folder.path):
            evaluation = BankEvaluation(finished, settings)
            work = _MergedRun(
                prepared.stream, plan, finished.scenario, prepared.model, prepared.probes, folder,
                display,
            )  # fmt: skip
            work.start_from(evaluation, origin)
            config = config_of(prepared.stream, plan, prepared.config)
            result = execute(work, {MERGED_FROM: str(run.resolve()), **config}, display, fresh)
    else:
        with hold(folder.path):  # if it was killed while it did that
            folder.checkpoints(display.warn).clear()
        display.note(f"{folder.path.name}: complete, shown again (--fresh repeats it)")
    out.print(results_table([finished.result, result]))
    say(out, f"run folder: {folder.path}")
    return result


class _MergedRun(Run):
    """A run whose tasks are merged from another one's bank, and not trained."""

    def start_from(self, evaluation: BankEvaluation, origin: dict[str, Any]) -> None:
        """Tell which bank is merged, and how."""
        self._evaluation, self._origin = evaluation, origin
        if origin["method"] == "mergetune":
            self.strategy.continue_solutions(evaluation.values)

    def execute(self, config: dict[str, Any]) -> dict[str, Any]:
        """Run all tasks; the result says under `merged` where they come from."""
        return {**super().execute(config), "merged": self._origin}

    def _learn(self, experience: Any) -> None:
        if self._origin["method"] == "mergetune":
            super()._learn(experience)
        else:
            values = self._evaluation.values_after(self._origin["method"], self.task)
            self.strategy.model.load_values(values)

    def _host_values(self) -> Mapping[str, Tensor]:
        return self._evaluation.values[self.task - 1]

    def _parents(self) -> list[str]:
        return [f"{self._origin['run']} task-{t:03d}" for t in range(1, self.task + 1)]

    def _start_display(self, task: int, tasks: int) -> None:
        self.display.start_task(task, tasks, 0, 0)

    def _announce(self) -> None:
        """Say nothing: what it takes is little beside the training of the host."""


def _continued(finished: FinishedRun, assignments: Sequence[str]) -> RunPlan:
    """Return the plan of MERGETUNE over the run's strategy."""
    registry, plan = finished.prepared.registry, finished.plan
    if plan.host is not None:
        raise UserError(f"{finished.path}: {plan.strategy.name} has merged already")
    if finished.prepared.stream.online is not None:
        raise UserError(
            f"{finished.path}: MERGETUNE trains on a task's images again, and this run saw them"
            " once (--online)"
        )
    entry, cls = registry.get("strategies", "mergetune"), registry.strategy_class("mergetune")
    settings = parse_settings([*assignments])
    for name in settings:
        if name != entry.name:
            raise UserError(f"--set {name}: only settings of mergetune can be given here")
    given, fields = settings.get(entry.name, {}), entry.options_class().model_fields
    for key in given:
        if key in ("host", "trajectory") or key not in fields:
            own_names = [name for name in fields if name not in ("host", "trajectory")]
            raise UserError(
                f"--set mergetune.{key}: the host and its recipe are those of the run."
                f" {nearest(key, own_names)}"
            )
    own = {**given, "host": plan.strategy.name, "trajectory": "read-out"}
    config, scenario = finished.prepared.config, finished.prepared.stream.data
    config = config.model_copy(update={"recipe": "default"})
    _, options = make_settings(config, scenario, entry, own)
    return RunPlan(
        plan.label, entry, cls.over(plan.cls), options, plan.recipe, plan.seed,
        host=plan.strategy, host_options=plan.options,
        data_seed=plan.data_seed, init_seed=plan.init_seed,
    )  # fmt: skip
