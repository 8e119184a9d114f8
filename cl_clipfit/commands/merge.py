"""`run.py bank eval` and `run.py merge`: other ways to use what a finished run learned."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from cl_clipfit.bank.index import INDEX
from cl_clipfit.commands import summary
from cl_clipfit.commands.evaluate import BankEvaluation, ModeResult
from cl_clipfit.commands.train import SAME_COMMAND, execute
from cl_clipfit.config.merge_settings import (
    ALL,
    BY_NAME,
    MERGING,
    ModeSettings,
    check_settings,
    find_mode,
)
from cl_clipfit.config.parsing import parse_settings
from cl_clipfit.data.streams import Scenario
from cl_clipfit.errors import UserError, nearest
from cl_clipfit.experiment.identity import config_of
from cl_clipfit.experiment.learner import Learner
from cl_clipfit.experiment.recipes import make_settings
from cl_clipfit.experiment.reopen import FinishedRun, open_run, was_deterministic
from cl_clipfit.experiment.run import Run
from cl_clipfit.experiment.run_plan import RunPlan
from cl_clipfit.methods.continued import ContinuedStrategy
from cl_clipfit.report.csv_tables import modes_csv
from cl_clipfit.report.display import ConsoleDisplay, say
from cl_clipfit.report.results import Results
from cl_clipfit.report.tables import modes_table
from cl_clipfit.runtime.determinism import deterministic
from cl_clipfit.runtime.signals import Stopped
from cl_clipfit.storage.files import read_bytes, sha256, write_atomic, write_json
from cl_clipfit.storage.lock import hold
from cl_clipfit.storage.manifest import adding
from cl_clipfit.storage.result import Result
from cl_clipfit.storage.run_folder import BANK_EVAL, MERGED_FROM, REPORT
from cl_clipfit.training.strategy import CLIPStrategy

MERGETUNE = "mergetune"


def evaluate_bank(
    run: Path, modes: Sequence[str], settings: ModeSettings, out: Console, err: Console,
    device: str | None = None,
) -> list[ModeResult]:  # fmt: skip
    """Score a run's bank in several modes; `bank-eval.json` and `.csv` go into its folder.

    A mode that cannot be computed is a warning if another one can.

    Raises:
        UserError: there is no finished run, a mode is unknown, or no mode can be computed.
    """
    if not modes:
        raise UserError(f"--mode: expected at least one of {', '.join(ALL)}, or all")
    modes = ALL if list(modes) == ["all"] else modes
    for mode in modes:
        find_mode(mode)
    check_settings("--mode", modes, settings)
    run = run.resolve()
    display = ConsoleDisplay(err)
    results, failed = [], dict[str, UserError]()
    with deterministic(was_deterministic(run)):
        finished = open_run(run, display, device)
        evaluation = BankEvaluation(finished, settings)
        for mode in dict.fromkeys(modes):
            display.note(f"bank eval: {mode}")
            try:
                results.append(evaluation.evaluate(mode))
            except UserError as error:
                failed[mode] = error
    if not results:
        raise next(iter(failed.values()))
    summaries = [result.summary() for result in results]
    content: dict[str, Any] = {"run": run.name, "modes": summaries}
    files = run / BANK_EVAL, (run / BANK_EVAL).with_suffix(".csv")
    if failed:
        content["not_computed"] = {mode: str(reason) for mode, reason in failed.items()}
    with adding(run):
        write_json(files[0], content)
        write_atomic(files[1], modes_csv(summaries))
    out.print(modes_table(finished.result, summaries))
    for mode, reason in failed.items():
        display.warn(f"{mode} cannot be computed: {reason}")
    for file in files:
        say(out, f"scores: {file}")
    return results


def merge_run(
    run: Path, method: str, settings: ModeSettings, assignments: Sequence[str],
    out: Console, err: Console, *, device: str | None = None, fresh: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Merge a finished run's bank after every task, and write the result as a separate run.

    Args:
        run: folder of the run of a host.
        method: a mode of `bank eval` that yields one set of weights, or "mergetune".
        settings: of the modes.
        assignments: `mergetune.key=value`, settings of MERGETUNE.
        out: where results go.
        err: where progress goes.
        device: where to compute; default where the run was trained.
        fresh: repeat a merge that is already complete.

    Raises:
        UserError: there is no finished run, the bank is damaged, or the method or a setting is
            unknown or invalid.
    """
    if method != MERGETUNE:
        find_mode(method, "--method", (MERGETUNE, *MERGING))
    if assignments and method != MERGETUNE:
        raise UserError(f"--set {assignments[0]}: only --method mergetune takes --set")
    check_settings("--method", [method], settings)
    run = run.resolve()
    display = ConsoleDisplay(err)
    try:
        with deterministic(was_deterministic(run)):
            return _merge(run, method, settings, assignments, out, display, device, fresh)
    except Stopped as stopped:
        stopped.advice = SAME_COMMAND  # not --resume, which does not load the host's bank
        raise


def _merge(
    run: Path, method: str, settings: ModeSettings, assignments: Sequence[str],
    out: Console, display: ConsoleDisplay, device: str | None, fresh: bool,
) -> dict[str, Any]:  # fmt: skip
    finished = open_run(run, display, device)
    plan = _continued(finished, assignments) if method == MERGETUNE else finished.plan
    used = {} if method == MERGETUNE else BY_NAME[method].settings(settings)
    label, changed = f"{finished.result['label']} + {method}", {**plan.changed, **used}
    plan = replace(plan, label=label, changed=changed)
    # The index of the bank holds the hash of every file.
    bank = sha256(read_bytes(finished.bank.folder / INDEX))
    origin: dict[str, Any] = {"method": method, "settings": used, "run": run.name, "bank": bank}
    prepared = finished.prepared
    folder = prepared.folder(plan, f"{finished.plan.strategy.name}+{method}", **origin)
    folder.check_links()
    result = None if fresh else folder.finished_result()
    with hold(folder.path):
        if result is None:
            work = Run(
                prepared.stream, plan, finished.scenario, prepared.model, prepared.probes, folder,
                display,
            )  # fmt: skip
            evaluation = BankEvaluation(finished, settings)
            work.learner = BankMerger(work.strategy, plan, finished.scenario, evaluation, origin)
            config = config_of(prepared.stream, plan, prepared.command)
            result = execute(work, {MERGED_FROM: str(run.resolve()), **config}, display, fresh)
        else:
            folder.checkpoints(display.warn).clear()  # left if it was killed while clearing
            display.note(f"{folder.path.name}: complete, shown again (--fresh repeats it)")
    results = Results([Result(finished.path, finished.result), Result(folder.path, result)])
    summary.write_report(folder.path / REPORT, [results], display)
    out.print(results.table())
    for line in (f"run folder: {folder.path}", *summary.named(folder.path / REPORT)):
        say(out, line)
    return result


class BankMerger(Learner):
    """Merges a task's weights from another run's bank, in closed form or by MERGETUNE.

    Args:
        strategy: receives the merged weights.
        plan: of the merge.
        scenario: the stream of tasks.
        evaluation: the bank, and how it is merged.
        origin: method, settings, run and bank, for the result.
    """

    def __init__(
        self, strategy: CLIPStrategy, plan: RunPlan, scenario: Scenario,
        evaluation: BankEvaluation, origin: dict[str, Any],
    ) -> None:  # fmt: skip
        super().__init__(strategy, plan, scenario)
        self.evaluation, self.origin = evaluation, origin
        self.method, self.run = origin["method"], origin["run"]
        self.announced = self.method == MERGETUNE  # the others take little longer than scoring
        if self.method == MERGETUNE:
            assert isinstance(strategy, ContinuedStrategy)
            strategy.continue_solutions(evaluation.load)

    def learn_experience(self, experience: Any, task: int) -> None:
        """Merge in closed form, or train MERGETUNE from the solution of the task."""
        if self.method == MERGETUNE:
            super().learn_experience(experience, task)
        else:
            values = self.evaluation.values_after(self.method, task)
            self.strategy.model.load_values(values)
            self.evaluation.run.load_head(task, self.strategy)

    def size(self, task: int) -> tuple[int, int]:
        """Return no epochs and no steps: there is no progress bar."""
        return 0, 0

    def host_values(self, task: int) -> Mapping[str, Tensor]:
        """Return what the merged run trained in the task."""
        return self.evaluation.load(task)

    def parents(self, task: int) -> list[str]:
        """Return the tasks that were merged."""
        return [f"{self.run} task-{t:03d}" for t in range(1, task + 1)]


def _continued(finished: FinishedRun, assignments: Sequence[str]) -> RunPlan:
    """Return the plan of MERGETUNE over the run's strategy."""
    registry, plan = finished.prepared.registry, finished.plan
    if plan.base is not None:
        raise UserError(
            f"{finished.path}: {plan.strategy.name} builds on {plan.base.strategy.name} already"
        )
    if finished.prepared.stream.settings.online is not None:
        raise UserError(
            f"{finished.path}: MERGETUNE trains on a task's images again, and this run saw them"
            " once (--online)"
        )
    entry, cls = registry.get("strategies", MERGETUNE), registry.strategy_class(MERGETUNE)
    settings = parse_settings([*assignments])
    for name in settings:
        if name != entry.name:
            raise UserError(f"--set {name}: only settings of mergetune can be given here")
    given, fields = settings.get(entry.name, {}), entry.options_class().model_fields
    for key in given:
        if key in ("host", "trajectory") or key not in fields:
            others = [name for name in fields if name not in ("host", "trajectory")]
            raise UserError(
                f"--set mergetune.{key}: the host and its recipe are those of the run."
                f" {nearest(key, others)}"
            )
    changed = {**plan.changed, **given}
    given |= {"host": plan.strategy.name, "trajectory": "read-out"}
    config, scenario = finished.prepared.command.config, finished.prepared.stream.data
    config = config.model_copy(update={"recipe": "default"})
    _, options = make_settings(config, scenario, entry, given)
    return RunPlan(
        plan.label, entry, cls.over(plan.cls), options, plan.recipe, plan.seed, plan.seeds,
        base=plan, changed=changed,
    )  # fmt: skip
