"""`CLIPStrategy`: the Avalanche template every method is a subclass of.

With `data/streams.py` this is the only code that touches Avalanche's internals.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_clipfit.clip import CLIPClassifier
from cl_clipfit.clip.augment import random_flip, random_resized_crop
from cl_clipfit.clip.classifier import DEFAULT_TEMPLATES, TemplatesLike
from cl_clipfit.config.options import Options, Recipe, ScopeOptions
from cl_clipfit.runtime import signals
from cl_clipfit.runtime.determinism import Seeds
from cl_clipfit.runtime.lean_imports import lean_imports
from cl_clipfit.runtime.out_of_memory import in_batches
from cl_clipfit.training.features import StepFeatures, Workload, keep_columns, label_index
from cl_clipfit.training.journal import Journal
from cl_clipfit.training.loop import RepeatableSteps
from cl_clipfit.training.loss_watch import LossWatch
from cl_clipfit.training.optimization import make_optimizer, make_schedule, online_steps

with lean_imports():
    from avalanche.core import SupervisedPlugin
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.templates import SupervisedTemplate

_AUGMENTATION_SEED = 1_000_003  # keeps crops from following the same draws as the data order


class StepCallback(SupervisedPlugin):
    """Avalanche plugin that calls a function after every training iteration.

    Args:
        function: takes the strategy; read `loss` seldom, it waits for the device.
    """

    def __init__(self, function: Callable[["CLIPStrategy"], None]) -> None:
        super().__init__()
        self.function = function

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Forward the event."""
        self.function(strategy)


def _silent_evaluator() -> EvaluationPlugin:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Avalanche warns that silence was asked for
        return EvaluationPlugin(loggers=[])


class CLIPStrategy(RepeatableSteps, SupervisedTemplate):
    """Train a `CLIPClassifier` on a stream of experiences, one fresh optimiser for each.

    A method overrides some of these hooks, and nothing else:

    - `trainable()`: the parameters that train, asked for at the start of every task;
    - `parameter_groups()`: the optimiser's groups; default: one over the whole selection;
    - `label_space()`: the classes that the training loss ranks; default: the task's own;
    - `text_space()`: the classes encoded in a step; default: those of `label_space()`;
    - `training_logits(images)`: the forward pass of a step; default: cosine similarities;
    - `compute_loss(logits, labels)`: the loss of a step; default: cross-entropy. `self.features`
      holds what the step encoded, so that a distillation term needs no second pass;
    - `before_task()`: before the optimiser of a task is built;
    - `add_gradients()`: after the backward pass of a step, for terms that need passes of their own;
    - `after_step()`: after every optimiser step;
    - `after_task()`: after the last step of a task; `train_stage(recipe)` there trains on the
      task's data again;
    - `scores(images)` and `probe_features(names, templates)`: how the finished method classifies;
      default: zero-shot with the tuned weights;
    - `zero_shot_point()`: the values of the selection that stand for zero-shot CLIP;
    - `compared()`: other weights that are scored beside the method's own;
    - `workload()`: what a task costs, where it is more than the recipe says.

    `training_loss(images, labels)` is the loss of a step as a function, for methods that need it
    again, at other weights; `task_sample(count)` returns images of the task.

    In plain Avalanche code: `strategy.train(experience)`, `strategy.eval(stream)`, with Avalanche's
    plugins, `EvaluationPlugin` and loggers, on a benchmark whose experiences know their classes.
    Labels index `class_names`. A plugin that mixes other classes into a batch (replay) needs a
    `label_space()` that holds them, such as `seen_classes`; plugins for task labels do not apply.
    Images are uint8 (C, H, W) of any size, preprocessed on the device, or float as the image tower
    takes them.

    A step that runs out of memory is undone and repeated with fewer images at a time
    (`model.micro_batch`, unless that is set), with the same draws; so hooks from
    `training_logits` to `add_gradients` may be called again for the same batch. Evaluation lowers
    `eval_mb_size`.

    Args:
        model: the classifier; it gets the classes it does not know yet.
        class_names: names in label order, of every class the stream will bring, beginning with
            those the model knows; default: those.
        templates: prompt templates of new classes, or a sequence of them for each of
            `class_names`.
        recipe: how a task is trained.
        options: the method's own settings; default: those of `options_class`.
        device: where to train.
        seeds: of generators of the method's own; default: that of PyTorch's default generator.
        plugins: Avalanche plugins.
        evaluator: Avalanche evaluation plugin; default: a silent one.
        **kwargs: further arguments of `SupervisedTemplate`, such as `eval_every`.

    Raises:
        ValueError: `class_names` contradict the classes the model knows.
    """

    frozen: ClassVar[bool] = False
    """True for a method whose predictions never change: it is not trained, and scored once."""

    trains: ClassVar[bool] = True
    """False for a method without gradient steps; it may still change in `after_task`."""

    towers: ClassVar[tuple[str, ...]] = ("image", "text")
    """The towers it changes or looks into. Without "image" it sees images through
    `model.image_features` alone, which are then encoded once; without either it also runs on
    features computed elsewhere."""

    compares_text: ClassVar[bool] = True
    """False for a method that does not classify by the features of class prompts."""

    needs_host: ClassVar[bool] = False
    """True for a method that continues another one: its classmethod `over(host)` returns a class
    that does both, and its options have a field `host`."""

    options_class: ClassVar[type[Options]] = Options
    """The method's own settings, which `--set NAME.key=value` accepts."""

    model: CLIPClassifier
    eval_mb_size: int
    mbatch: Any
    mb_output: Any

    def __init__(
        self,
        *,
        model: CLIPClassifier,
        class_names: Sequence[str] | None = None,
        templates: TemplatesLike = DEFAULT_TEMPLATES,
        recipe: Recipe | None = None,
        options: Options | None = None,
        device: str | torch.device = "cpu",
        seeds: Seeds | None = None,
        plugins: Sequence[Any] | None = None,
        evaluator: Any = None,
        **kwargs: Any,
    ) -> None:
        before = set(vars(self))  # a method's own, set before this
        self.recipe = recipe or Recipe()
        self.seeds = seeds or Seeds.of_torch()
        self.options: Any = self.options_class() if options is None else options
        own = [t for t in templates if not isinstance(t, str)]  # of each class: none are shared
        self.templates: tuple[str, ...] = DEFAULT_TEMPLATES if own else tuple(templates)  # type: ignore[arg-type]
        model.to(device)
        if class_names is not None:
            known = len(model.class_names)
            if list(class_names)[:known] != model.class_names:
                raise ValueError(f"class_names must begin with the {known} the model knows already")
            model.add_classes(
                list(class_names)[known:], own[known : len(class_names)] or self.templates
            )
        super().__init__(
            model=model,
            optimizer=None,  # built anew for every task
            train_mb_size=self.recipe.batch_size,
            train_epochs=self.recipe.epochs,
            eval_mb_size=kwargs.pop("eval_mb_size", 256),
            device=device,
            plugins=plugins,
            evaluator=_silent_evaluator() if evaluator is None else evaluator,
            **kwargs,
        )
        self.allow_repeats()
        self.features: StepFeatures | None = None
        self.selection: dict[str, nn.Parameter] = {}
        self.task_classes: list[int] = []
        self.seen_classes: list[int] = []
        self.tasks_seen = 0
        self.task_number, self.task_steps = 0, 0  # being learned, from 1; its steps so far
        self.scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
        self.warnings: list[str] = []
        self.records: list[dict[str, Any]] = []  # what a method notes, a task each
        self.measured_seconds = 0.0  # of `train`, spent on measuring and not on training
        # A generator of its own: what is drawn for a crop does not change the order of the data.
        self.augmentation_draws = torch.Generator().manual_seed(
            (self.seeds.data + _AUGMENTATION_SEED) % 2**63
        )
        self.watch = LossWatch()
        self.journal: Journal | None = None
        # What a method adds to these belongs to its state, as far as it is plain values.
        self.model_buffers = {name for name, _ in self.model.named_buffers()}  # of any classifier
        self.common_attributes = {*vars(self), "common_attributes"} - before

    # ---- hooks ----------------------------------------------------------------------------------

    def trainable(self) -> Iterable[nn.Parameter]:
        """Return the parameters of `self.model` that train; an empty selection is an error."""
        return ()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's groups; default: one, with the whole selection."""
        return [{"params": list(self.selection.values())}]

    def label_space(self) -> Sequence[int]:
        """Return the classes (labels) that the training loss ranks.

        Default: those that the option `ce_scope` of `ScopeOptions` says, else those of the task.
        """
        scoped = isinstance(self.options, ScopeOptions) and self.options.ce_scope == "seen"
        return self.seen_classes if scoped else self.task_classes

    def text_space(self) -> Sequence[int]:
        """Return the classes (labels) whose text a step encodes; it holds `label_space()`."""
        return self.label_space()

    def training_logits(self, images: Tensor) -> Tensor:
        """Encode images and text once and keep them in `self.features`.

        Returns:
            logits (B, K) for all K classes; -inf outside of `label_space()`.
        """
        classes = list(self.text_space())
        image = self.model.image_features(images)
        raw_text = self.model.text_features(classes, normalize=False)
        text = F.normalize(raw_text, dim=-1)
        self.features = StepFeatures(image, text, classes, raw_text)
        logits = self._spread(self.model.logits(image, text), classes)
        ranked = list(self.label_space())
        return logits if ranked == classes else keep_columns(logits, ranked)

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of a step.

        Args:
            logits: (B, K) for all K classes; -inf outside of `label_space()`.
            labels: (B,).
        """
        return F.cross_entropy(logits, labels)

    def warn(self, text: str) -> None:
        """Record, once, what the user should know; shown, and kept in `result.json`."""
        if text not in self.warnings:
            self.warnings.append(text)

    def before_task(self) -> None:
        """Do something before the optimiser of a task is built; default nothing."""

    def add_gradients(self) -> None:
        """Add to the gradients of a step, after the backward pass of its loss; default nothing."""

    def after_step(self) -> None:
        """Do something after every optimiser step; default nothing."""

    def after_task(self) -> None:
        """Do something after a task's last step; default nothing."""

    def scores(self, images: Tensor) -> Tensor:
        """Score images (B, ...) against all K classes: (B, K), the largest wins."""
        return self.model(images)

    def probe_features(self, names: Sequence[str], templates: TemplatesLike) -> Tensor:
        """Encode class names of a probe, which are no classes of the stream: (K, d)."""
        return self.model.encode_names(names, templates)

    def zero_shot_point(self) -> dict[str, Tensor]:
        """Return the values of the selection at which the method is zero-shot CLIP.

        Default: the pretrained ones.

        Raises:
            ValueError: the method trains parameters of its own, whose values at the start need not
                stand for zero-shot CLIP; a method for which they do overrides this.
        """
        added = [name for name in self.selection if name not in self.model.backbone_names]
        if added:
            raise ValueError(
                f"{type(self).__name__} has no zero-shot point: {added[0]} is not pretrained;"
                " override zero_shot_point() if its values at the start stand for zero-shot CLIP"
            )
        return {name: self.model.pretrained_values[name] for name in self.selection}

    def workload(self) -> Workload:
        """Return what a task costs; default: the epochs of the recipe."""
        return Workload(self.recipe.epochs, self.recipe.epochs)

    def compared(self) -> dict[str, Mapping[str, Tensor]]:
        """Return other values of the selection, by name, to be scored beside the method's own."""
        return {}

    # ---- scoring ------------------------------------------------------------------------------

    @torch.no_grad()
    def score_all(self, images: Tensor) -> Tensor:
        """Score all images (N, 3, H, W) of the stream, in batches: (N, K) on the CPU."""
        self.model.eval()
        with self.model.cached_text():
            return self.in_batches(lambda batch: self.scores(batch).cpu(), images)

    @torch.no_grad()
    def score_probe(self, images: Tensor, names: Sequence[str], templates: TemplatesLike) -> Tensor:
        """Score images (N, 3, H, W) zero-shot against other class names: (N, len(names))."""
        self.model.eval()
        text = self.probe_features(names, templates)
        model = self.model
        return self.in_batches(
            lambda batch: model.logits(model.image_features(batch), text).cpu(), images
        )

    def in_batches(self, function: Callable[..., Tensor], images: Any, *beside: Tensor) -> Tensor:
        """Apply a function to `eval_mb_size` images at a time; to fewer once memory runs out.

        Args:
            function: takes images (B, ...) on the device, and the same rows of each tensor of
                `beside`; a row of its result for each image.
            images: (N, ...), or what stands for such a tensor.
            beside: tensors (N, ...) with a row for each image.

        Returns:
            the results one after the other, (N, ...).

        Raises:
            UserError: there is not memory enough for one image.
        """
        found, size = in_batches(function, images, self.device, self.eval_mb_size, *beside)
        if size != self.eval_mb_size:
            self.eval_mb_size = size
            self.warn(f"out of memory in evaluation: {size} images at a time from now on")
        return found

    # ---- the loop -------------------------------------------------------------------------------

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """Select what trains and build an optimiser over that alone.

        Avalanche's own version appends every parameter of the model, frozen ones too, and fails
        with two parameter groups.
        """
        if self._continues_task():
            return  # a further piece of the same task: its selection and optimiser stay
        classes = getattr(self.experience, "classes_in_this_experience", None)
        if classes is None:
            raise ValueError(
                "the experience does not know its classes: wrap the benchmark in Avalanche's"
                " with_classes_timeline"
            )
        self.task_number, self.task_steps = self.tasks_seen + 1, 0
        self.task_classes = sorted(getattr(self.experience, "task_classes", classes))
        self.seen_classes += [c for c in self.task_classes if c not in self.seen_classes]
        self._check_labels()
        self.model.to(self.device)
        if self.frozen or not self.trains:
            return
        self.select()
        self.before_task()
        self.optimizer = make_optimizer(self.recipe, self.parameter_groups())

    def _before_training_exp(self, **kwargs: Any) -> None:
        super()._before_training_exp(**kwargs)
        if self.trains and not self.frozen and not self._continues_task():
            # after plugins: replay changes the loader's length
            self.scheduler = make_schedule(self.recipe, self.optimizer, self._task_steps())

    def _continues_task(self) -> bool:
        """True where a task's images arrive in several experiences, and this is not the first."""
        return not getattr(self.experience, "is_first_subexp", True)

    def _task_steps(self) -> int:
        """Return the steps of an epoch, over all experiences of an online task together."""
        experience = self.experience
        if getattr(experience, "is_last_subexp", True):  # and the first, or it would not be asked
            return len(self.dataloader)
        return online_steps(self.recipe, experience.task_samples, len(experience.dataset))

    def select(self) -> None:
        """Make exactly the parameters of `trainable()` train.

        Raises:
            ValueError: there are none, or some belong to another model.
        """
        self.selection = self.model.train_only(self.trainable())
        if not self.selection:
            name = type(self).__name__
            raise ValueError(f"{name}.trainable() selects no parameter of this model")

    def _check_labels(self) -> None:
        largest = max(self.task_classes)
        if largest >= len(self.model.class_names):
            known = len(self.model.class_names)
            raise ValueError(f"label {largest} has no name: class_names holds {known} names")

    def make_train_dataloader(self, **kwargs: Any) -> None:
        """Build the loader of a task; `drop_last` never drops a task's only batch."""
        if self.recipe.drop_last and len(self.adapted_dataset) >= self.train_mb_size:
            kwargs["drop_last"] = True
        super().make_train_dataloader(**kwargs)
        if kwargs.get("num_workers"):
            own = self.dataloader  # Avalanche hands no such argument on
            if hasattr(own, "loader_kwargs"):
                own.loader_kwargs["worker_init_fn"] = signals.in_worker
            else:
                own.worker_init_fn = signals.in_worker

    def _unpack_minibatch(self) -> None:
        """Move the batch to the device and, in training, augment it."""
        super()._unpack_minibatch()
        if self.is_training and self.recipe.augmentation != "none":
            self.mbatch[0] = self._augment(self.mb_x)

    def _augment(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            raise ValueError("augmentation needs uint8 images; float ones are preprocessed already")
        recipe, draws = self.recipe, self.augmentation_draws
        images = random_resized_crop(images, self.model.preprocess, recipe.crop_scale, draws)
        return random_flip(images, draws) if recipe.augmentation == "crop-flip" else images

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        if self.trains and not self.frozen:
            self._run_epochs(self.train_epochs, piece=True, **kwargs)

    def _run_epochs(self, epochs: int, piece: bool = False, **kwargs: Any) -> None:
        """Run epochs; those that an earlier process finished, the journal leaves out."""
        done = self.journal.enter(epochs) if self.journal else 0
        with signals.deferred():
            self._run_rest(range(done, epochs), piece, **kwargs)

    _stop_training: bool

    def _run_rest(self, rest: range, piece: bool, **kwargs: Any) -> None:
        for epoch in rest:
            self._before_training_epoch(**kwargs)
            stopped, self._stop_training = self._stop_training, False  # by a plugin
            if not stopped:
                self.training_epoch(**kwargs)
                self._after_training_epoch(**kwargs)
            if self.journal:
                done = rest.stop if stopped else epoch + 1
                self.journal.epoch_done(done, rest.stop, piece)
            if stopped:
                break

    def train_stage(self, recipe: Recipe) -> None:
        """Train on the task's data again, from the current weights, with a fresh optimiser.

        Args:
            recipe: how; batch size and `drop_last` stay those of the strategy.
        """
        own, self.recipe = self.recipe, recipe
        try:
            self.optimizer = make_optimizer(recipe, self.parameter_groups())
            self.scheduler = make_schedule(recipe, self.optimizer, len(self.dataloader))
            self._run_epochs(recipe.epochs)
        finally:
            self.recipe = own

    def task_sample(
        self, count: int, experience: Any = None, by_class: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return at most `count` training images, a fixed draw, and their labels, on the CPU.

        Args:
            count: images.
            experience: the task; default the one that is being learned.
            by_class: draw from each class alike, and from each at least one.
        """
        data = (experience or self.experience).dataset
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        if by_class:
            targets = torch.as_tensor(list(data.targets))[order]
            limit = max(1, count // len(targets.unique()))
            order = torch.cat([order[targets == label][:limit] for label in targets.unique()])
        else:
            order = order[:count]
        images, labels = zip(*(data[i][:2] for i in order.sort().values.tolist()), strict=True)
        return torch.stack(images), torch.tensor(labels)

    def backward(self) -> None:
        """Run the backward pass of a step, then `add_gradients`."""
        super().backward()
        self.add_gradients()

    def _after_training_exp(self, **kwargs: Any) -> None:
        if getattr(self.experience, "is_last_subexp", True):
            self.tasks_seen += 1
            self.after_task()
        super()._after_training_exp(**kwargs)

    def forward(self) -> Tensor:
        """Return logits (B, K) of the minibatch; -inf outside of the label space in force.

        In training that is `label_space()`, in evaluation the classes seen (all, before any).
        """
        if self.is_training:
            return self.training_logits(self.mb_x)
        everything = range(len(self.model.class_names))
        scores = self.in_batches(self.scores, self.mb_x)
        return keep_columns(scores, self.seen_classes or everything)

    def training_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of a step at the current weights, with gradients."""
        return self.compute_loss(self.training_logits(images), labels)

    def eval(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Evaluate on experiences as Avalanche does, encoding the class prompts once."""
        with self.model.cached_text():
            return super().eval(*args, **kwargs)

    def _spread(self, logits: Tensor, classes: Sequence[int]) -> Tensor:
        """Put columns for `classes` at their labels: (B, C) to (B, K), -inf elsewhere."""
        full = logits.new_full((len(logits), len(self.model.class_names)), -torch.inf)
        return full.index_copy(1, label_index(classes, logits.device), logits)

    def criterion(self) -> Tensor:
        """Return the loss of the minibatch: `compute_loss` in training, else cross-entropy."""
        if self.is_training:
            return self.compute_loss(self.mb_output, self.mb_y)
        return F.cross_entropy(self.mb_output, self.mb_y)

    def optimizer_step(self) -> None:
        """Step the optimiser and the schedule, then call `after_step`."""
        self.optimizer.step()
        assert self.scheduler is not None
        self.scheduler.step()
        self.after_step()
