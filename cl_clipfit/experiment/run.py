"""One run: from a scenario, a strategy and a seed to a folder with tables, metrics and a bank."""

import time
from collections.abc import Mapping
from typing import Any

import torch

from cl_clipfit.clip import CLIPClassifier
from cl_clipfit.data.source import Source
from cl_clipfit.data.streams import Scenario
from cl_clipfit.errors import UserError
from cl_clipfit.evaluation.frozen_features import FrozenImages
from cl_clipfit.evaluation.scoreboard import Scoreboard
from cl_clipfit.evaluation.scoring import Scorer
from cl_clipfit.experiment.bank_writer import STATISTICS_IMAGES, BankWriter
from cl_clipfit.experiment.build import build_strategy, failure, select_first
from cl_clipfit.experiment.calibration import measure_threshold
from cl_clipfit.experiment.continuation import Continuation, keep_state
from cl_clipfit.experiment.estimate import estimate_seconds
from cl_clipfit.experiment.evaluator import Evaluator
from cl_clipfit.experiment.footprint import bank_bytes
from cl_clipfit.experiment.learner import Learner
from cl_clipfit.experiment.prediction_writer import PredictionWriter
from cl_clipfit.experiment.record import RunRecord, build_result
from cl_clipfit.experiment.run_plan import RunPlan
from cl_clipfit.experiment.stream_plan import StreamPlan
from cl_clipfit.merging.layers import change_by_layer
from cl_clipfit.metrics.functional import seen_accuracy
from cl_clipfit.metrics.tables import NotANumberError
from cl_clipfit.runtime import device, processes, signals
from cl_clipfit.runtime.code_files import package_hash
from cl_clipfit.runtime.progress import Progress
from cl_clipfit.storage.calibration import write_threshold
from cl_clipfit.storage.files import write_json
from cl_clipfit.storage.history import HistoryFile
from cl_clipfit.storage.run_folder import NAN_BATCH, RunFolder
from cl_clipfit.training.features import tasks_in_reach
from cl_clipfit.training.history import HistoryPlugin
from cl_clipfit.training.journal import Journal, place, stream_hash
from cl_clipfit.training.loop import StepCallback
from cl_clipfit.training.loss_watch import DivergedError, LossWatch
from cl_clipfit.training.snapshot import kept_bytes

LONG_RUN_SECONDS = 120


class Run:
    """Trains one strategy on a stream and writes its folder.

    Args:
        stream: what all runs of the command share.
        plan: the strategy and its seed.
        scenario: the stream of tasks.
        model: the pretrained classifier, without classes; it is copied, not changed.
        probes: data sets scored zero-shot after every task.
        folder: where the results go.
        progress: receives progress, notes and warnings.
        encoder: encodes images once for methods that do not change the image tower; None encodes
            them at every use.

    Attributes:
        test_images: as the stream has them, never their features instead of them.
        strategy: the method, on a copy of the model.
        record: the numbers of the run so far.
        learner: trains or merges the weights of a task.
        evaluator: fills the tables.
        bank: keeps what each task trained.
        history: records what happens while it trains.
        predictions: keeps those for all test images.
        journal: saves the state after every epoch; None if there is nothing to save.
        earlier: a finished run of the first tasks, which this one continues; usually none.
    """

    earlier: Continuation | None = None

    def __init__(
        self,
        stream: StreamPlan,
        plan: RunPlan,
        scenario: Scenario,
        model: CLIPClassifier,
        probes: Mapping[str, Source],
        folder: RunFolder,
        progress: Progress,
        encoder: FrozenImages | None = None,
    ) -> None:
        started = time.perf_counter()
        self.test_images = scenario.test.images
        if encoder is not None and "image" not in plan.cls.towers:
            scenario, probes = encoder.encode(
                scenario, probes, plan.reads_train_images_as_they_are, plan.cls.class_tokens
            )
        self.stream, self.plan, self.scenario = stream, plan, scenario
        self.probes, self.folder, self.progress = probes, folder, progress
        self.task = 0  # current task, counted from 1; 0 before the first
        self._warnings_shown = 0
        self.history = HistoryPlugin()
        self.strategy = build_strategy(
            plan, stream.compute, model, scenario.class_names, scenario.templates,
            plugins=[StepCallback(progress.step), self.history],
        )  # fmt: skip
        self.strategy.watch = LossWatch(skip=stream.on_nan == "skip")
        self.record = RunRecord(Scoreboard(scenario))
        self.record.encode_seconds.append(time.perf_counter() - started)
        self.learner = Learner(self.strategy, plan, scenario, stream.settings.online)
        scorer = Scorer(self.strategy, scenario, probes, model, encoder)
        self.predictions = PredictionWriter(folder, scenario, progress.note)
        self.evaluator = Evaluator(scorer, self.record, self.predictions.append)
        self.bank = BankWriter(folder, plan, self.strategy, scenario)
        self.journal: Journal | None = None

    def execute(self, config: dict[str, Any]) -> dict[str, Any]:
        """Run all tasks and return the content of `result.json`, which the caller saves.

        Raises:
            UserError: the strategy's code fails, the model diverges, or the folder cannot be
                written. The environment variable CL_CLIPFIT_DEBUG=1 shows the traceback.
        """
        device.reset_peak_memory(self.stream.compute.device)
        self._check_processes()
        select_first(self.plan, self.strategy, self.scenario.brought[0])
        self._show_warnings()
        if self.plan.recipe is not None and self.strategy.learning == "gradient":
            checkpoints = self.folder.checkpoints(self.progress.warn)
            self.journal = Journal(checkpoints, self.strategy, self._stream(), self.folder.digest)
        saved = self.journal.load() if self.journal else None
        if saved is None:
            self.folder.begin(config)
        else:
            self._resume(saved, config)
        self.bank.open(saved["tasks"] if saved else None)
        if self.folder.writes:
            history = saved and saved.get("history")
            if saved is None and self.earlier is not None:
                history = self.earlier.copy_history(self.folder.path)
            self.history.open(HistoryFile(self.folder.path), history)
        if self.journal:
            self.journal.history = self.history
        if self.stream.keeps_predictions:
            self.predictions.open(saved["tasks"] if saved else 0)
        try:
            self._run_stream(saved)
        except DivergedError as error:
            raise self._diverged(error) from error
        except UserError:
            raise
        except Exception as error:
            signals.check()  # the signal may have ended worker processes too
            doubt = ""
            if self.journal and isinstance(error, NotANumberError):
                doubt = self.journal.doubt(self.strategy.task_steps)
            raise UserError(failure(self.plan, error, self.task) + doubt) from error
        self.bank.verify()  # a file of an earlier task may be gone
        result = build_result(self.stream, self.plan, self.scenario, self.strategy, self.record)
        origin = self.learner.origin
        return result if origin is None else {**result, "merged": origin}

    def _check_processes(self) -> None:
        """Refuse more processes than a batch has images; say if each has to do all of the work."""
        several, recipe = processes.world(), self.plan.recipe
        if several > 1 and recipe is not None and recipe.batch_size < several:
            raise UserError(
                f"{several} processes share a batch of {recipe.batch_size} images"
                f" ({self.plan.label}): use fewer processes or a larger --batch-size"
            )
        if several > 1 and not self.strategy.divisible:
            self.progress.note(
                f"{self.plan.label}: every process trains on whole batches, because its encoders"
                " draw random numbers or look at the whole batch; only evaluation is shared"
            )

    def learn_first(self) -> dict[str, torch.Tensor]:
        """Return what the first task trains; nothing is written."""
        select_first(self.plan, self.strategy, self.scenario.brought[0])
        self.evaluator.evaluate()
        self._show_warnings()
        self.task = 1
        self.progress.start_task(1, 1, *self.learner.size(1))
        self.learner.learn(1)
        return {n: p.detach().clone() for n, p in self.strategy.selection.items()}

    def _resume(self, saved: dict[str, Any], config: dict[str, Any]) -> None:
        """Prepare the folder and the journal to continue from a saved state."""
        assert self.journal is not None
        if saved["stream"] != stream_hash(self._stream()):
            raise UserError(
                f"{self.folder.path}: its tasks have other classes than this command's: a run"
                " cannot be resumed with another stream"
            )
        if not self.folder.changed:
            self.folder.check_digest(saved["digest"])
            for text in self.folder.rounding_changes(config):
                self.strategy.warn(
                    f"resumed with {text}: the last bits of numbers are not those of an"
                    " uninterrupted run"
                )
        if saved.get("code") not in (None, package_hash()):
            self.strategy.warn(
                "resumed after the code of cl_clipfit had changed: its results are those of neither"
                " code alone (--fresh repeats the run)"
            )
        self.folder.begin_again(config)
        self.journal.repeats_batches = not self.folder.changed
        for text in self.folder.changed:
            self.strategy.warn(f"resumed with other settings: {text}")
        self.progress.note(f"{self.folder.path.name}: resumed {place(saved)}")

    def _diverged(self, error: DivergedError) -> UserError:
        """Save the batch whose loss is NaN or infinite, and return the error to raise."""
        if self.folder.writes:
            write_json(self.folder.path / NAN_BATCH, error.batch)
        doubt = self.journal.doubt(error.first_step) if self.journal else ""
        return UserError(
            f"{error}; the batch is in {self.folder.path / NAN_BATCH}, what was finished before"
            f" is kept{doubt}"
        )

    def _stream(self) -> list[list[int]]:
        """Return what identifies the stream; labels are numbered in order of arrival."""
        return [self.scenario.class_order, *self.scenario.task_classes]

    def _run_stream(self, saved: dict[str, Any] | None) -> None:
        self._announce()
        finished = saved["tasks"] if saved else 0
        if saved and finished:
            self.record.restore(saved["progress"])
            for task in range(1, finished + 1):
                self.progress.row(task, self.record.board.tables.seen[task])
        elif self.earlier is not None:
            self.earlier.restore(self)
            finished = self.earlier.tasks
        else:
            self._evaluate()
            if saved is None:  # otherwise the line is there
                self._add_to_history(0)
        for task in range(finished + 1, self.scenario.trained_tasks + 1):
            self.task = task
            self._run_task(task)
        keep_state(self)
        if self.strategy.learning != "none":
            for text in self.record.below_zero_shot():
                self.strategy.warn(text)
            self._show_warnings()
            measured = measure_threshold(self.strategy, self.scenario)
            if measured is not None and self.folder.writes:
                write_threshold(self.folder.path, *measured)
        if self.stream.compute.compile:
            compiling = self.strategy.model.compile_seconds
            self.progress.note(f"torch.compile took {compiling:.1f} s of the training")

    def _run_task(self, task: int) -> None:
        """Learn a task, add what it trained to the bank, and fill a row of every table."""
        tasks, record = self.scenario.trained_tasks, self.record
        size = self.learner.size(task)
        self.progress.start_task(task, tasks, *size)
        self.history.begin_task(size[1])
        if self.journal:
            self.journal.begin_task(task - 1, record.state())
        started = time.perf_counter()
        self.learner.learn(task)
        measured, self.strategy.measured_seconds = self.strategy.measured_seconds, 0.0
        seconds = time.perf_counter() - started - measured
        if self.journal:
            seconds += self.journal.earlier_seconds
        record.train_seconds.append(seconds)
        record.measure_seconds.append(measured)
        self.folder.require()
        self.bank.append(task, self.learner.parents(task), self.learner.host_values(task))
        anchors = self.strategy.model.pretrained_values
        record.kept_bytes.append(kept_bytes(self.strategy) + self._image_bytes(task))
        record.changes.append(change_by_layer(self.strategy.selection, anchors))
        self._show_warnings()
        self._evaluate()
        self._add_to_history(task)
        seen = seen_accuracy(record.board.tables.seen, self.scenario.test_samples, task)
        self.progress.row(task, record.board.tables.seen[task])
        self.progress.end_task(task, tasks, seen, seconds)

    def _add_to_history(self, task: int) -> None:
        """Add the line of a task: accuracy over all classes seen in percent, times, memory."""
        record, seen = self.record, self.record.board.tables.seen
        values = {
            "accuracy": seen_accuracy(seen, self.scenario.test_samples, task),
            "train_seconds": round(record.train_seconds[-1], 3) if task else 0.0,
            "eval_seconds": round(record.eval_seconds[-1], 3),
            "peak_memory_bytes": device.peak_memory_bytes(self.stream.compute.device),
        }
        self.history.end_task(task, self.strategy.task_steps if task else 0, values)

    def _image_bytes(self, task: int) -> int:
        """Return the size of the images of other tasks that the strategy trained on in a task."""
        reach, counts = self.strategy.reach, self.scenario.train_samples
        if reach == "task":
            return 0
        one = self.scenario.train.images[:1].to("cpu")
        span = tasks_in_reach(reach, task - 1, self.scenario.trained_tasks)
        return sum(counts[at] for at in span) * one.numel() * one.element_size()

    def _evaluate(self) -> None:
        self.evaluator.evaluate()
        self._show_warnings()

    def _show_warnings(self) -> None:
        """Show the strategy's new warnings; all of them go into the result."""
        for text in self.strategy.warnings[self._warnings_shown :]:
            self.progress.warn(text)
        self._warnings_shown = len(self.strategy.warnings)

    def _announce(self) -> None:
        """Report how long the run will take and how much it will write, if it is much."""
        if not self.learner.announced:
            return
        name, scorer = self.plan.strategy.name, self.evaluator.scorer
        seconds = estimate_seconds(
            self.plan, self.scenario, self.strategy, self.probes,
            STATISTICS_IMAGES if self.bank.writes else 0, scorer.at_hand(),
        )  # fmt: skip
        if seconds is not None and seconds > LONG_RUN_SECONDS:
            where = self.stream.compute.device
            self.progress.note(
                f"{name}: about {seconds / 60:.0f} minutes on {where}, estimated from a few images"
                " and prompts"
            )
        gigabytes = sum(bank_bytes(self.strategy, self.scenario)) / 1e9
        if gigabytes > 1:
            self.progress.note(f"{name}: its bank will take about {gigabytes:.1f} GB")
