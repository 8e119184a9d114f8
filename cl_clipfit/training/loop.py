"""The training loop of every method: Avalanche's, with steps that can be repeated.

`TrainingLoop.training_epoch` is the loop over the steps; the hooks it calls belong to
`CLIPStrategy`. Only this module and `data/streams.py` use Avalanche's internals.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cl_clipfit.clip import CLIPClassifier
from cl_clipfit.clip.augment import random_flip, random_resized_crop
from cl_clipfit.config.options import Recipe
from cl_clipfit.errors import StrategyWarning
from cl_clipfit.runtime import processes, signals
from cl_clipfit.runtime.determinism import Seeds
from cl_clipfit.runtime.lean_imports import lean_imports
from cl_clipfit.training.checks import check_classes, check_labels, doubt_of_loss
from cl_clipfit.training.features import Reach, StepFeatures, experiences_in_reach, keep_columns
from cl_clipfit.training.journal import Journal
from cl_clipfit.training.loss_watch import LossWatch
from cl_clipfit.training.optimization import (
    ParameterGroup,
    make_optimizer,
    make_schedule,
    online_steps,
)
from cl_clipfit.training.repetition import clear_gradients, repeat_until_it_fits, trained
from cl_clipfit.training.shared_reading import SharedReading

with lean_imports():
    from avalanche.benchmarks.utils.utils import concat_datasets
    from avalanche.core import SupervisedPlugin
    from avalanche.distributed import DistributedHelper
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.templates import SupervisedTemplate


Learning = Literal["gradient", "closed-form", "none"]
_AUGMENTATION_SEED = 1_000_003  # keeps crops independent of the data order


class StepCallback(SupervisedPlugin):
    """Avalanche plugin that calls a function after every training iteration.

    Args:
        function: takes the strategy; it should read `loss` rarely, since that waits for the device.
    """

    def __init__(self, function: Callable[[Any], None]) -> None:
        super().__init__()
        self.function = function

    def after_training_iteration(
        self, strategy: SupervisedTemplate, *args: object, **kwargs: object
    ) -> None:
        """Forward the event."""
        self.function(strategy)


def silent_evaluator() -> EvaluationPlugin:
    """Return an Avalanche evaluation plugin that logs nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Avalanche warns that there are no loggers
        return EvaluationPlugin(loggers=[])


class TrainingLoop(SupervisedTemplate):
    """What `CLIPStrategy` uses of Avalanche's template, and what it replaces.

    Args:
        model: the classifier, with all classes of the stream.
        recipe: how a task is trained.
        seeds: seeds of the method's generators.
        **kwargs: further arguments of `SupervisedTemplate`.
    """

    learning: ClassVar[Learning] = "gradient"
    """How the method learns: by "gradient" steps of an optimiser; in "closed-form", in the hooks
    `add_experience` and `after_task`; or "none": its predictions never change, so it is scored
    once."""

    reach: ClassVar[Reach] = "task"
    """The images that a task trains on: those of the task, of all tasks so far ("seen"), or of all
    tasks ("stream"). The classes of the task are the classes of these images."""

    divisible: ClassVar[bool] = True
    """Whether several processes may each encode a share of a step's images and prompts. False for
    encoders that draw random numbers or look at the whole batch: every process runs all of it."""

    # Set by Avalanche's template.
    model: CLIPClassifier
    device: torch.device
    optimizer: torch.optim.Optimizer
    plugins: list[SupervisedPlugin]
    eval_mb_size: int
    train_mb_size: int
    train_epochs: int
    is_training: bool
    experience: Any  # with the attributes that `data/streams.py` adds
    dataloader: DataLoader[list[Tensor]] | SharedReading
    mbatch: list[Tensor] | None
    mb_output: Tensor | None
    mb_x: Tensor
    mb_y: Tensor
    loss: Tensor
    _stop_training: bool

    # Methods of `CLIPStrategy` that the loop calls.
    select: Callable[[], None]
    label_space: Callable[[], Sequence[int]]
    parameter_groups: Callable[[], list[ParameterGroup]]
    step_batch: Callable[[list[Tensor]], list[Tensor]]
    training_logits: Callable[[Tensor], Tensor]
    compute_loss: Callable[[Tensor, Tensor], Tensor]
    scores: Callable[[Tensor], Tensor]
    in_batches: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
    before_task: Callable[[], None]
    add_experience: Callable[[], None]
    add_gradients: Callable[[], None]
    step_weights: Callable[[], AbstractContextManager[None]]
    update_weights: Callable[[], None]
    after_step: Callable[[], None]
    after_experience: Callable[[], None]
    after_task: Callable[[], None]

    def __init__(
        self, *, model: CLIPClassifier, recipe: Recipe, seeds: Seeds, **kwargs: Any
    ) -> None:
        super().__init__(
            model=model,
            optimizer=None,  # built anew for every task
            train_mb_size=recipe.batch_size,
            train_epochs=recipe.epochs,
            **kwargs,
        )
        self.recipe = recipe
        self.micro_batch_given = model.micro_batch is not None  # set by the user: not lowered
        self._loader_arguments: dict[str, object] = {}
        self.features: StepFeatures | None = None
        self.selection: dict[str, nn.Parameter] = {}
        self.task_classes: list[int] = []
        self.seen_classes: list[int] = []
        self.tasks_seen = 0
        self.task_number, self.task_steps = 0, 0  # current task, counted from 1; its steps so far
        self.scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
        self.warnings: list[str] = list(model.warnings)
        self.shows_warnings = True  # False if the caller shows those in `warnings`
        # A separate generator, so that drawing crops does not change the order of the data.
        self.augmentation_draws = torch.Generator().manual_seed(
            (seeds.data + _AUGMENTATION_SEED) % 2**63
        )
        self.method_loss, self.plugin_loss = torch.zeros(1), torch.zeros(1)  # parts of a step's
        self.terms: dict[str, Tensor] = {}  # of the step's loss, by name
        self.watch = LossWatch()
        self.journal: Journal | None = None
        if processes.world() > 1:
            _divide_nothing()

    # ---- the steps of an epoch ------------------------------------------------------------------

    def training_epoch(self, **kwargs: object) -> None:
        """Run the steps of an epoch: Avalanche's loop and events, with passes that can be repeated.

        If memory runs out, the step is repeated with fewer images at a time. A batch with a NaN or
        infinite loss stops the run or is skipped. After a signal, the run ends after the step.
        """
        journal = self.journal
        for batch in journal.batches(self.dataloader) if journal else self.dataloader:
            if self._stop_training:
                break
            self.mbatch = self.step_batch(batch)
            images = self.mbatch[0]
            self._unpack_minibatch()
            self._before_training_iteration(**kwargs)
            clear_gradients(self)
            self.loss = self._make_empty_loss()
            self._before_forward(**kwargs)

            def passes() -> None:
                self.terms.clear()
                with self.step_weights():
                    self.mb_output = self.forward()  # the hook training_logits
                    self._after_forward(**kwargs)
                    self.loss += self.criterion()  # the hook compute_loss
                    self.method_loss = self.loss.detach().clone()
                    self._before_backward(**kwargs)
                    self.plugin_loss = self.loss.detach() - self.method_loss
                    self.backward()  # then the hook add_gradients

            repeat_until_it_fits(self, passes)
            self._after_backward(**kwargs)
            self._before_update(**kwargs)
            self.task_steps += 1
            assert self.scheduler is not None
            if self.watch.leaves_out(self, images):
                self.scheduler.step()  # a skipped batch changes nothing else
            else:
                self.optimizer_step()  # then the hook after_step
            self._after_update(**kwargs)
            self._after_training_iteration(**kwargs)
            if processes.stopping():
                _save_and_stop(self)
        self.watch.flush(self)

    def _unpack_minibatch(self) -> None:
        """Move the batch to the device and, in training, augment it."""
        super()._unpack_minibatch()
        if self.is_training and self.recipe.augmentation != "none":
            assert self.mbatch is not None
            self.mbatch[0] = _augment(self, self.mb_x)

    def forward(self) -> Tensor:
        """Return logits (B, K) of the minibatch; -inf outside of the current label space.

        In training it is `label_space()`; in evaluation the classes seen, or all before training.
        """
        if self.is_training:
            return self.training_logits(self.mb_x)
        classes = self.seen_classes or range(len(self.model.class_names))
        self._all_scores = self.in_batches(self.scores, self.mb_x)
        return keep_columns(self._all_scores, classes)

    def criterion(self) -> Tensor:
        """Return the loss of the minibatch: `compute_loss` in training, else cross-entropy.

        In evaluation it ranks the classes seen and the image's own, so that it is finite before
        that class is learned.
        """
        assert self.mb_output is not None
        if self.is_training:
            return self.compute_loss(self.mb_output, self.mb_y)
        labels = self.mb_y[:, None]
        logits = self.mb_output.scatter(1, labels, self._all_scores.gather(1, labels))
        return F.cross_entropy(logits, self.mb_y)

    def backward(self) -> None:
        """Run the backward pass of a step, then `add_gradients`; average over the processes."""
        super().backward()
        self.add_gradients()
        processes.average_gradients(trained(self))

    def optimizer_step(self) -> None:
        """Take the step with `update_weights`, step the schedule, then call `after_step`."""
        assert self.scheduler is not None
        self.update_weights()
        self.scheduler.step()
        self.after_step()

    def warn(self, text: str) -> None:
        """Record a warning once, unless it is empty: for `result.json`, or shown by Python."""
        if text and text not in self.warnings:
            self.warnings.append(text)
            if self.shows_warnings:
                warnings.warn(text, StrategyWarning, stacklevel=2)

    # ---- the epochs of a task -------------------------------------------------------------------

    @property
    def takes_steps(self) -> bool:
        """Whether the current task takes gradient steps."""
        return self.learning == "gradient"

    def check_model_and_optimizer(self, **kwargs: object) -> None:
        """Select the trainable parameters and build an optimiser over only these.

        Avalanche's version adds all parameters, including frozen ones, and fails with two groups.
        """
        if self._continues_task():
            return  # another experience of the same task: keep its selection and optimiser
        self.task_number, self.task_steps = self.tasks_seen + 1, 0
        reached = experiences_in_reach(self.reach, self.experience)
        self.task_classes = sorted({c for one in reached for c in check_classes(one)})
        self.seen_classes += [c for c in self.task_classes if c not in self.seen_classes]
        self.warn(check_labels(self.experience, self.task_classes, self.model.class_names))
        self.model.to(self.device)
        if self.takes_steps:
            self.select()
            self.warn(doubt_of_loss(self.label_space(), self.options))
            self.before_task()
            self.optimizer = make_optimizer(self.recipe, self.parameter_groups())

    def train_dataset_adaptation(self, **kwargs: object) -> None:
        """Take the images of all experiences that the task trains on."""
        super().train_dataset_adaptation(**kwargs)
        if self.reach != "task":
            reached = experiences_in_reach(self.reach, self.experience)
            self.adapted_dataset = concat_datasets([one.dataset.train() for one in reached])

    def _before_training_exp(self, **kwargs: object) -> None:
        super()._before_training_exp(**kwargs)
        if self.takes_steps and not self._continues_task():
            # After the plugins, since replay changes the length of the loader.
            self.scheduler = make_schedule(self.recipe, self.optimizer, _task_steps(self))

    def _continues_task(self) -> bool:
        """Return whether this is a later experience of a task that arrives in several."""
        return not getattr(self.experience, "is_first_subexp", True)

    def make_train_dataloader(self, **kwargs: object) -> None:
        """Build the loader of a task; `drop_last` never drops a task's only batch."""
        self._loader_arguments = dict(kwargs)
        if self.recipe.drop_last and len(self.adapted_dataset) >= self.train_mb_size:
            kwargs["drop_last"] = True
        super().make_train_dataloader(**kwargs)
        if kwargs.get("num_workers"):
            # Avalanche does not pass this argument on.
            arguments = getattr(self.dataloader, "loader_kwargs", vars(self.dataloader))
            arguments["worker_init_fn"] = signals.in_worker
            if processes.together() and type(self.dataloader) is DataLoader:
                self.dataloader = SharedReading(self.dataloader)

    def _train_exp(self, experience: object, eval_streams: object = None, **kwargs: object) -> None:
        with torch.no_grad():
            self.add_experience()  # a resumed run restores its outcome with the first epoch
        if self.takes_steps:
            self._run_epochs(self.train_epochs, piece=True, **kwargs)

    def _run_epochs(self, epochs: int, piece: bool = False, **kwargs: object) -> None:
        """Run the epochs that no earlier process has finished according to the journal."""
        done = self.journal.enter(epochs) if self.journal else 0
        with signals.deferred():
            for epoch in range(done, epochs):
                self._before_training_epoch(**kwargs)
                stopped, self._stop_training = self._stop_training, False  # by a plugin
                if not stopped:
                    self.training_epoch(**kwargs)
                    self._after_training_epoch(**kwargs)
                if self.journal:
                    self.journal.epoch_done(epochs if stopped else epoch + 1, epochs, piece)
                if stopped:
                    break

    def train_stage(self, recipe: Recipe) -> None:
        """Train on the task's data again, from the current weights, with a fresh optimiser.

        Args:
            recipe: how to train.
        """
        before, self.recipe = self.recipe, recipe
        loader, self.train_mb_size = self.dataloader, recipe.batch_size
        try:
            if (recipe.batch_size, recipe.drop_last) != (before.batch_size, before.drop_last):
                self.make_train_dataloader(**self._loader_arguments)
            self.optimizer = make_optimizer(recipe, self.parameter_groups())
            self.scheduler = make_schedule(recipe, self.optimizer, len(self.dataloader))
            self._run_epochs(recipe.epochs)
        finally:
            self.recipe, self.train_mb_size, self.dataloader = before, before.batch_size, loader

    def _after_training_exp(self, **kwargs: object) -> None:
        self.after_experience()
        if getattr(self.experience, "is_last_subexp", True):
            self.tasks_seen += 1
            self.after_task()
        super()._after_training_exp(**kwargs)

    def eval(self, *args: object, **kwargs: object) -> dict[str, Any]:
        """Evaluate on experiences as Avalanche does, encoding the class prompts once."""
        with self.model.cached_text():
            return super().eval(*args, **kwargs)


def _save_and_stop(loop: TrainingLoop) -> None:
    """Save a run that a signal stops, and raise `Stopped`."""
    if loop.journal:
        loop.watch.flush(loop)
        loop.journal.step_done()
    signals.check()


def _divide_nothing() -> None:
    """Keep Avalanche's loaders from dividing data: every process draws whole batches."""
    type(DistributedHelper).is_distributed = property(lambda helper: False)


def _task_steps(loop: TrainingLoop) -> int:
    """Return the steps per epoch, summed over all experiences of an online task."""
    experience = loop.experience
    if getattr(experience, "is_last_subexp", True):  # the only one, since it is also the first
        return len(loop.dataloader)
    return online_steps(loop.recipe, experience.task_samples, len(experience.dataset))


def _augment(loop: TrainingLoop, images: Tensor) -> Tensor:
    """Crop images (B, 3, H, W), and mirror them if the recipe says so."""
    if images.dtype != torch.uint8:
        raise ValueError("augmentation needs uint8 images; float ones are preprocessed already")
    rng, scale = loop.augmentation_draws, loop.recipe.crop_scale
    images = random_resized_crop(images, loop.model.preprocess, scale, rng)
    return random_flip(images, rng) if loop.recipe.augmentation == "crop-flip" else images
