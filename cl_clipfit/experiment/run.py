"""One run: scenario x strategy x seed -> a run folder with tables, metrics and curves."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from cl_clipfit import metrics
from cl_clipfit.bank.routing import class_statistics
from cl_clipfit.bank.store import DeltaBank
from cl_clipfit.clip import CLIPClassifier
from cl_clipfit.data.images.decode import THREADS
from cl_clipfit.data.images.lazy import LazyImages
from cl_clipfit.data.source import Source
from cl_clipfit.data.streams import Scenario
from cl_clipfit.errors import UserError
from cl_clipfit.evaluation.frozen_features import FrozenImages
from cl_clipfit.evaluation.scoring import Scoreboard, Scorer, Scores
from cl_clipfit.experiment.build import build_strategy, failure, select_first
from cl_clipfit.experiment.estimate import estimate_seconds
from cl_clipfit.experiment.result import Progress, build_result
from cl_clipfit.experiment.run_plan import RunPlan
from cl_clipfit.experiment.stream_plan import StreamPlan
from cl_clipfit.merging.layers import change_by_layer
from cl_clipfit.metrics.tables import NotANumberError, seen_curve
from cl_clipfit.runtime import device as environment
from cl_clipfit.runtime import signals
from cl_clipfit.runtime.progress import Progress as Display
from cl_clipfit.storage.files import write_json
from cl_clipfit.storage.run_folder import NAN_BATCH, RunFolder
from cl_clipfit.training.journal import Journal, stream_hash
from cl_clipfit.training.loss_watch import DivergedError, LossWatch
from cl_clipfit.training.optimization import online_steps
from cl_clipfit.training.strategy import StepCallback

LONG_RUN_SECONDS = 120
_OWN = ""  # the weights that a strategy has now, among those it is compared with
STATISTICS_IMAGES = 2000  # a task: enough for its means, little beside its training


class Run:
    """Train one strategy on a stream and write its folder.

    Args:
        stream: what all runs of the command share.
        plan: the strategy and its seed.
        scenario: the stream of tasks.
        model: the pretrained classifier, without classes; it is copied, not changed.
        probes: data sets scored zero-shot after every task.
        folder: where the results go.
        display: told about progress.
        encoder: encodes images once for methods that leave the image tower as it is; None
            encodes them at every use.
    """

    def __init__(
        self,
        stream: StreamPlan,
        plan: RunPlan,
        scenario: Scenario,
        model: CLIPClassifier,
        probes: Mapping[str, Source],
        folder: RunFolder,
        display: Display,
        encoder: FrozenImages | None = None,
    ) -> None:
        started = time.perf_counter()
        if encoder is not None and "image" not in plan.cls.towers:
            scenario, probes = encoder.encode(scenario, probes, plan.recipe)
        self.stream, self.plan, self.scenario = stream, plan, scenario
        self.probes, self.folder, self.display = probes, folder, display
        self.task = 0  # being learned; 0 before any
        self._warned = 0
        self.strategy = build_strategy(
            plan, stream, model, scenario.class_names, scenario.templates,
            plugins=[StepCallback(display.step)],
        )  # fmt: skip
        self.scorer = Scorer(self.strategy, scenario, probes, model, encoder)
        self.progress = Progress(Scoreboard(scenario))
        self.progress.encode_seconds.append(time.perf_counter() - started)
        self.strategy.watch = LossWatch(skip=stream.on_nan == "skip")
        self._before: Scores | None = None  # of the model as it was before training
        self.journal: Journal | None = None

    def execute(self, config: dict[str, Any]) -> dict[str, Any]:
        """Run all tasks and return the content of `result.json`, which the caller saves.

        Raises:
            UserError: the strategy's code fails, the model diverges, or the folder cannot be
                written. The environment variable CL_CLIPFIT_DEBUG=1 shows the traceback.
        """
        environment.reset_peak_memory(self.stream.device)
        select_first(self.plan, self.strategy, self.scenario.task_classes[0])
        self._show_warnings()
        if self.plan.recipe is not None and self.strategy.trains:
            checkpoints = self.folder.checkpoints(self.display.warn)
            self.journal = Journal(checkpoints, self.strategy, self._stream(), self.folder.digest)
        saved = self.journal.load() if self.journal else None
        if self.journal is None or saved is None:
            self.folder.begin(config)
        else:
            if saved["stream"] != stream_hash(self._stream()):
                raise UserError(
                    f"{self.folder.path}: its tasks have other classes than this command's: no run"
                    " can go on with another stream"
                )
            if not self.folder.changed:
                self.folder.check_digest(saved["digest"])
                self._note_rounding(config)
            self.folder.begin_again(config)
            self.journal.repeats_batches = not self.folder.changed
            for text in self.folder.changed:
                self.strategy.warn(f"went on with other settings: {text}")
            self.display.note(f"{self.folder.path.name}: going on {_place(saved)}")
        self._open_bank(saved)
        try:
            self._run_stream(saved)
        except DivergedError as error:
            write_json(self.folder.path / NAN_BATCH, error.batch)
            doubt = self.journal.doubt(error.first_step) if self.journal else ""
            raise UserError(
                f"{error}; the batch is in {self.folder.path / NAN_BATCH}, what was finished before"
                f" is kept{doubt}"
            ) from error
        except UserError:
            raise
        except Exception as error:
            signals.check()  # the signal may have ended worker processes too
            doubt = ""
            if self.journal and isinstance(error, NotANumberError):
                doubt = self.journal.doubt(self.strategy.task_steps)
            raise UserError(failure(self.plan, error, self.task) + doubt) from error
        if self.bank is not None:
            self.bank.verify()  # a file of an earlier task may be gone
        return build_result(self.stream, self.plan, self.scenario, self.strategy, self.progress)

    def _note_rounding(self, config: Mapping[str, Any]) -> None:
        """Warn of settings that are not the run's and change the last bits of numbers."""
        for text in self.folder.rounding_changes(config):
            self.strategy.warn(
                f"went on with {text}: the last bits of numbers are not those of an unbroken run"
            )

    def _stream(self) -> list[list[int]]:
        """Return what tells the stream from others: labels are numbered as classes arrive."""
        return [self.scenario.class_order, *self.scenario.task_classes]

    def _run_stream(self, saved: dict[str, Any] | None) -> None:
        self._announce()
        finished = saved["tasks"] if saved else 0
        if saved and finished:
            self.progress.restore(saved["progress"])
        else:
            self._evaluate()
        tasks = self.scenario.trained_tasks
        for task in range(finished + 1, tasks + 1):
            self.task = task
            self._start_display(task, tasks)
            if self.journal:
                self.journal.begin_task(task - 1, self.progress.state())
            started = time.perf_counter()
            self._learn_task()
            measured, self.strategy.measured_seconds = self.strategy.measured_seconds, 0.0
            seconds = time.perf_counter() - started - measured
            if self.journal:
                seconds += self.journal.earlier_seconds
            self.progress.train_seconds.append(seconds)
            self.progress.measure_seconds.append(measured)
            self._keep_task()
            self._evaluate()
            seen = metrics.functional.seen_accuracy(
                self.progress.board.tables.seen, self.scenario.test_samples, task
            )
            self.display.end_task(task, tasks, seen, seconds)
        if self.stream.compile:
            compiling = self.strategy.model.compile_seconds
            self.display.note(f"torch.compile took {compiling:.1f} s of the training")

    def learn_first(self) -> dict[str, torch.Tensor]:
        """Learn the first task alone, keep nothing of it, and return what it trained."""
        select_first(self.plan, self.strategy, self.scenario.task_classes[0])
        self._evaluate()
        self.task = 1
        self._start_display(1, 1)
        self._learn_task()
        return {n: p.detach().clone() for n, p in self.strategy.selection.items()}

    def _learn_task(self) -> None:
        """Learn all experiences of the task."""
        stream, tasks = self.scenario.benchmark.train_stream, self.scenario.experience_tasks
        for experience, own in zip(stream, tasks, strict=True):
            if own == self.task - 1:
                self._learn(experience)

    def _learn(self, experience: Any) -> None:
        workers = THREADS if isinstance(self.scenario.train.images, LazyImages) else 0
        self.strategy.train(experience, eval_streams=[], num_workers=workers)

    def _open_bank(self, saved: dict[str, Any] | None) -> None:
        """Start the bank, or go on with the tasks that a saved state counts as finished."""
        self.bank: DeltaBank | None = None
        identity = self.strategy.model.identity
        if self.plan.recipe is None or identity is None:
            return
        folder = self.folder.path / "bank"
        if saved is None:
            self.bank = DeltaBank.create(
                folder, asdict(identity), self.plan.label, self.scenario.templates
            )
        else:
            self.bank = DeltaBank.open(folder)
            self.bank.keep(saved["tasks"])
            self.bank.verify()

    def _keep_task(self) -> None:
        """Put what the task trained into the bank, and note how far it moved."""
        self.folder.require()
        strategy, task = self.strategy, self.task
        if self.bank is not None:
            host = self._host_values()
            self.bank.append(
                strategy.selection,
                [self.scenario.class_names[c] for c in self.scenario.task_classes[task - 1]],
                self._parents() + ([f"task-{task:03d}-host"] if host else []),
                host,
                self._statistics(),
            )
        anchors = strategy.model.pretrained_values
        self.progress.changes.append(change_by_layer(strategy.selection, anchors))
        self._show_warnings()

    def _host_values(self) -> Mapping[str, torch.Tensor] | None:
        """Return the weights that were merged into the task's own, where there are such."""
        return self.strategy.compared().get("host")

    def _parents(self) -> list[str]:
        """Return what the task's weights were made of."""
        return [f"task-{self.task - 1:03d}" if self.task > 1 else "zero-shot"]

    def _statistics(self) -> dict[str, torch.Tensor]:
        """Summarise the task's training images as zero-shot CLIP sees them, to route by."""
        # Encoded here, even if another method has encoded all of them: in other batches, whose
        # last bits differ, and a bank does not depend on the methods that run beside it.
        strategy, model = self.strategy, self.strategy.model
        experience = self.scenario.of_task(self.task - 1)
        images, labels = strategy.task_sample(STATISTICS_IMAGES, experience, by_class=True)
        with torch.no_grad(), model.pretrained_weights():
            features = strategy.in_batches(lambda x: model.image_features(x).cpu(), images)
        return class_statistics(features, labels)

    def _show_warnings(self) -> None:
        """Show the strategy's new warnings; all of them go into the result."""
        for text in self.strategy.warnings[self._warned :]:
            self.display.warn(text)
        self._warned = len(self.strategy.warnings)

    def _start_display(self, task: int, tasks: int) -> None:
        if self.plan.recipe is None:
            self.display.start_task(task, tasks, 0, 0)
            return
        recipe, images = self.plan.recipe, self.scenario.train_samples[task - 1]
        steps = online_steps(recipe, images, self.stream.online or images)
        epochs = self.strategy.workload().epochs
        self.display.start_task(task, tasks, epochs, epochs * steps)

    def _evaluate(self) -> None:
        """Fill one row of every table; an image tower sees the test images once."""
        started = time.perf_counter()
        strategy, scenario, compared = self.strategy, self.scenario, self.strategy.compared()
        boards = {_OWN: self.progress.board}
        for name in compared:
            boards[name] = self.progress.compared.setdefault(name, Scoreboard(scenario))
        weights: dict[str, Mapping[str, torch.Tensor]] = {_OWN: {}, **compared}
        if strategy.frozen and self._before:  # which is not resumed, but run again
            boards[_OWN].add(self._before)
            del weights[_OWN]
        for name, scores in self.scorer.score(weights):
            if not self.progress.board.tables.seen:
                self._keep_before(scores)
            elif not boards[name].tables.seen:
                boards[name].add(self._row_zero())
            boards[name].add(scores)
        self.progress.eval_seconds.append(time.perf_counter() - started)
        self._show_warnings()

    def _row_zero(self) -> Scores:
        """Return the scores of the model as it was before training; a resumed run has none."""
        if self._before is None:
            start = self.strategy.model.pretrained_values
            ((_, self._before),) = self.scorer.score({_OWN: start})
        return self._before

    def _keep_before(self, scores: Scores) -> None:
        self._before, scenario = scores, self.scenario
        tasks = scenario.task_classes[: scenario.trained_tasks]
        self.progress.zero_shot = seen_curve(
            scores.test, scenario.test.labels, tasks, scenario.test_tasks
        )

    def _announce(self) -> None:
        """Say how long the run will take and how much it will write, where that is much."""
        name, where = self.plan.strategy.name, self.stream.device
        seconds = estimate_seconds(
            self.plan, self.scenario, self.strategy, self.probes,
            STATISTICS_IMAGES if self.bank is not None else 0, self.scorer.at_hand(),
        )  # fmt: skip
        if seconds > LONG_RUN_SECONDS:
            self.display.note(
                f"{name}: about {seconds / 60:.0f} minutes on {where}, estimated from a few images"
                " and prompts"
            )
        values = sum(p.numel() for p in self.strategy.selection.values())
        copies = 2 if self.plan.host else 1  # the host's weights are kept too
        gigabytes = 4 * values * copies * self.scenario.trained_tasks / 1e9
        if gigabytes > 1:
            self.display.note(f"{name}: its bank will take about {gigabytes:.1f} GB")


def _place(saved: dict[str, Any]) -> str:
    """Say where a saved run goes on."""
    at, task = saved["at"], saved["tasks"] + 1
    if not at:
        return f"with task {task}"
    part = "" if at["loop"] == 0 else f" of part {at['loop'] + 1}"
    if at["steps"]:
        return f"in task {task}, after step {at['steps']} of epoch {at['epoch'] + 1}{part}"
    return f"in task {task}, after epoch {at['epoch']}{part}"
