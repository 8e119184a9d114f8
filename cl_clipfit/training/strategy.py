"""`CLIPStrategy`: the hooks of a method, on the training loop of `loop.py`."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_clipfit.clip import CLIPClassifier
from cl_clipfit.clip.prompts import DEFAULT_TEMPLATES, TemplatesLike
from cl_clipfit.config.options import Options, Recipe, ScopeOptions
from cl_clipfit.runtime.determinism import Seeds
from cl_clipfit.training import snapshot
from cl_clipfit.training.features import (
    StepFeatures,
    Workload,
    keep_columns,
    label_index,
    read_samples,
)
from cl_clipfit.training.loop import TrainingLoop, silent_evaluator
from cl_clipfit.training.optimization import ParameterGroup
from cl_clipfit.training.scoring import Scoring
from cl_clipfit.training.terms import read_terms


class CLIPStrategy(Scoring, TrainingLoop):
    """Train a `CLIPClassifier` on a stream of experiences, one fresh optimiser for each.

    A method overrides some of these hooks, and nothing else:

    - `trainable()`: the parameters that train, called at the start of every task;
    - `parameter_groups()`: the optimiser's groups; default: one over the whole selection;
    - `label_space()`: the classes that the training loss ranks; default: the task's own;
    - `text_space()`: the classes encoded in a step; default: those of `label_space()`;
    - `step_batch(batch)`: the images and labels of a step; default: those of the loader;
    - `step_weights()`: the weights at which a step's passes run; default: as they are;
    - `training_logits(images)`: the forward pass of a step; default: cosine similarities;
    - `compute_loss(logits, labels)`: the loss of a step; default: cross-entropy. `self.features`
      holds what the step encoded, so that a distillation term needs no second pass;
    - `before_task()`: before the optimiser of a task is built;
    - `add_gradients()`: after the backward pass of a step, for terms that need passes of their own;
    - `update_weights()`: the optimiser's step, whose update a method may change;
    - `after_step()`: after every optimiser step;
    - `add_experience()`: learns from an experience without gradients ("closed-form");
    - `after_experience()`: after the last step of an experience, of which a task may have several;
    - `after_task()`: after the last step of a task; `train_stage(recipe)` there trains on the
      task's data again;
    - `scores(images)` and `probe_features(names, templates)`: how the finished method classifies;
      default: zero-shot with the tuned weights;
    - `joint_scores(images, names)`: how it ranks its classes and other names together; default:
      `scores(images)` beside `name_scores(images, names)`, which are cosine similarities of
      `name_features(images)` by default;
    - `zero_shot_point()`: the values of the selection that stand for zero-shot CLIP;
    - `compared()`: other weights to be scored in addition to the method's own;
    - `workload()`: the cost of a task, if it is more than the recipe's epochs;
    - `head_state()` and `load_head_state(state)`: the sums of a closed-form head, for the bank;
    - `state_dict()` and `load_state_dict(state)`: the state of the method, for checkpoints.

    The class attribute `learning` says whether it learns by "gradient" steps (the default), in
    "closed-form", or not at all ("none").

    `training_loss(images, labels)` is the loss of a step as a function, for methods that need it at
    other weights too; `term(name, value)` names a term of it for progress and history;
    `task_sample(count)` returns images of the task, `current_values()` those of the selection.

    In plain Avalanche code, use `strategy.train(experience)` and `strategy.eval(stream)`, with
    Avalanche's plugins, `EvaluationPlugin` and loggers, on a benchmark with a classes timeline.
    Labels index `class_names`. A plugin that mixes other classes into a batch (replay) or reads
    their logits (LwF) needs a `label_space()` that contains them, such as `seen_classes`. In
    evaluation, the loss ranks the classes seen and the image's own. Modules and parameters that a
    method adds belong on `self.model`. Images are uint8 (C, H, W) of any size, preprocessed on the
    device, or float as the image tower takes them.

    If a step runs out of memory, it is undone and repeated with fewer images at a time
    (`model.micro_batch`, unless that is set) and the same random numbers; hooks from
    `training_logits` to `add_gradients` may therefore be called again for the same batch.
    Evaluation lowers `eval_mb_size`.

    Args:
        model: the classifier; new classes are added to it.
        class_names: names of all classes of the stream in label order, beginning with those that
            the model already has; default: only these.
        templates: prompt templates of new classes, or a sequence of them for each of
            `class_names`.
        recipe: how a task is trained.
        options: the method's settings; default: those of `options_class`.
        device: where to train.
        seeds: seeds of the method's generators; default: that of PyTorch's default generator.
        plugins: Avalanche plugins.
        evaluator: Avalanche evaluation plugin; default: a silent one.
        **kwargs: further arguments of `SupervisedTemplate`, such as `eval_every`.

    Raises:
        ValueError: `class_names` contradict the classes that the model already has, or there is a
            `criterion`, which nothing would use.
    """

    towers: ClassVar[tuple[str, ...]] = ("image", "text")
    """The towers that it changes or inspects. Without "image", it uses images only through
    `model.image_features`, and they are encoded once; without both, it also runs on features that
    were computed elsewhere."""

    class_tokens: ClassVar[int] = 0
    """Without "image" in `towers`: the number of blocks whose class tokens it reads as well."""

    compares_text: ClassVar[bool] = True
    """False for a method that does not classify by the features of class prompts."""

    base_option: ClassVar[str | None] = None
    """The option that names the method which it builds on. Its classmethod `over(base)` returns a
    class that trains both, `refuses(base)` says which cannot be used, and its argument NAME_options
    takes the settings of that method. If the option's default is "none", the class itself needs no
    other method."""

    repeats_images: ClassVar[bool] = False
    """True for a method that trains on a task's images again after the task."""

    resumes: ClassVar[bool] = True
    """False for a method with state that no checkpoint can hold: a run of it is not resumed."""

    extends: ClassVar[bool] = False
    """True for a method whose finished run can be continued with further tasks, bit for bit as if
    they had belonged to the stream: nothing of it depends on classes that are yet to come."""

    options_class: ClassVar[type[Options]] = Options
    """The method's settings, which `--set NAME.key=value` accepts."""

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
        plugins: Sequence[object] | None = None,
        evaluator: object = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("criterion"):
            raise ValueError("criterion has no effect: override compute_loss() instead")
        before = set(vars(self))  # attributes that the method has already set
        self.seeds = seeds or Seeds.of_torch()
        self.options: Any = self.options_class() if options is None else options
        per_class = [t for t in templates if not isinstance(t, str)]  # templates for each class
        self.templates: tuple[str, ...] = DEFAULT_TEMPLATES if per_class else tuple(templates)  # type: ignore[arg-type]
        model.to(device)
        if class_names is not None:
            old = len(model.class_names)
            if list(class_names)[:old] != model.class_names:
                raise ValueError(f"class_names must begin with the {old} the model knows already")
            new = list(class_names)[old:]
            model.add_classes(new, per_class[old : len(class_names)] or self.templates)
        super().__init__(
            model=model,
            recipe=recipe or Recipe(),
            seeds=self.seeds,
            eval_mb_size=kwargs.pop("eval_mb_size", 256),
            device=device,
            plugins=plugins,
            evaluator=silent_evaluator() if evaluator is None else evaluator,
            **kwargs,
        )
        self.records: list[dict[str, Any]] = []  # the method's records, per task
        self.measured_seconds = 0.0  # time in `train` spent on measuring instead of training
        # Attributes and buffers that a method adds to these belong to its state.
        self.model_buffers = {name for name, _ in self.model.named_buffers()}  # of any classifier
        self.common_attributes = {*vars(self), "common_attributes"} - before

    # ---- hooks ----------------------------------------------------------------------------------

    def trainable(self) -> Iterable[nn.Parameter]:
        """Return the parameters of `self.model` that train; an empty selection is an error."""
        return ()

    def select(self) -> None:
        """Make exactly the parameters of `trainable()` train.

        Raises:
            ValueError: there are none, or some belong to another model.
        """
        self.selection = self.model.train_only(self.trainable())
        if not self.selection:
            name = type(self).__name__
            raise ValueError(f"{name}.trainable() selects no parameter of this model")

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the optimiser's groups; default: one, with the whole selection."""
        return [{"params": list(self.selection.values())}]

    def trained_numbers(self) -> int:
        """Return how many numbers the optimiser changes; default: those of the selection."""
        return sum(p.numel() for p in self.selection.values())

    def label_space(self) -> Sequence[int]:
        """Return the classes (labels) that the training loss ranks.

        Default: those of the option `ce_scope` of `ScopeOptions`, else those of the task.
        """
        scoped = isinstance(self.options, ScopeOptions) and self.options.ce_scope == "seen"
        return self.seen_classes if scoped else self.task_classes

    def text_space(self) -> Sequence[int]:
        """Return the classes (labels) whose text a step encodes; they include `label_space()`."""
        return self.label_space()

    def step_batch(self, batch: list[Tensor]) -> list[Tensor]:
        """Return the images and labels of a step, before they are augmented.

        Args:
            batch: from the loader: images (B, ...) and labels (B,), on the CPU.
        """
        return batch

    def training_logits(self, images: Tensor) -> Tensor:
        """Encode images and text once and keep them in `self.features`.

        Returns:
            logits (B, K) for the classes of the streams so far; -inf outside of `label_space()`.
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
            logits: (B, K), as `training_logits` returns them.
            labels: (B,).
        """
        return self.term("cross-entropy", F.cross_entropy(logits, labels))

    def before_task(self) -> None:
        """Do something before the optimiser of a task is built; default nothing."""

    def add_experience(self) -> None:
        """Learn from `self.experience` in closed form; a task may arrive in several of them."""

    def add_gradients(self) -> None:
        """Add to the gradients of a step, after the backward pass of its loss; default nothing."""

    def step_weights(self) -> AbstractContextManager[None]:
        """Return a context in which a step's passes run, as one that changes the weights."""
        return nullcontext()

    def update_weights(self) -> None:
        """Change the selection by the gradients of a step; default: a step of the optimiser."""
        self.optimizer.step()

    def after_step(self) -> None:
        """Do something after every optimiser step; default nothing."""

    def after_experience(self) -> None:
        """Do something after the last step of `self.experience`; default nothing."""

    def after_task(self) -> None:
        """Do something after a task's last step; default nothing."""

    def zero_shot_point(self) -> dict[str, Tensor]:
        """Return the values of the selection at which the method is zero-shot CLIP.

        Default: the pretrained ones.

        Raises:
            ValueError: the method trains parameters that it added, whose initial values may not
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
        """Return the cost of a task; default: the epochs of the recipe."""
        return Workload(self.recipe.epochs, self.recipe.epochs)

    def compared(self) -> dict[str, Mapping[str, Tensor]]:
        """Return other values of the selection to be scored in addition to its own, by name."""
        return {}

    def head_state(self) -> dict[str, Tensor]:
        """Return the sums of a closed-form head, which the bank keeps; default: there is none."""
        return {}

    def load_head_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the head that `head_state` described; default: there is none."""

    def head_bytes(self, images: int, classes: int) -> int:
        """Return about how large `head_state` is, for `--dry-run`; default 0.

        Args:
            images: training images of all tasks so far.
            classes: of all tasks so far.
        """
        return 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the method other than weights and RNG state, for checkpoints.

        Default: those of its attributes that a checkpoint can hold, which are plain values and
        tensors. A method may remove what a resumed run creates again, or add state of other types
        in such a form.
        """
        return snapshot.plain_attributes(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, in another process; default: set the attributes.

        Raises:
            ValueError: an attribute belongs to every strategy, not to the method.
        """
        for name, value in state.items():
            if name in self.common_attributes:
                raise ValueError(f"the state of {type(self).__name__} must not hold {name}")
            setattr(self, name, value)

    # ---- for methods --------------------------------------------------------------------------

    def term(self, name: str, value: Tensor) -> Tensor:
        """Record a term of a step's loss, weighted as it is added to it, and return it unchanged.

        Progress and history show `terms` by name; a name that is used again replaces its value.
        """
        self.terms[name] = value.detach().clone()  # it may be added to in place
        return value

    def read_terms(self) -> dict[str, float]:
        """Return "loss" of the last step and its terms as numbers; waits once for the device."""
        return read_terms(self.loss, self.terms, self.plugin_loss)

    def training_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of a step at the current weights, with gradients."""
        return self.compute_loss(self.training_logits(images), labels)

    def current_values(self) -> dict[str, Tensor]:
        """Return a copy of the selection's values."""
        return {name: p.detach().clone() for name, p in self.selection.items()}

    def _spread(self, logits: Tensor, classes: Sequence[int]) -> Tensor:
        """Put columns for `classes` at their labels: (B, C) to (B, K), -inf elsewhere."""
        # A step has none of a stream that follows: more columns would change its last bits.
        last = max(classes) if self.is_training else len(self.model.class_names) - 1
        full = logits.new_full((len(logits), self.model.classes_until(last)), -torch.inf)
        return full.index_copy(1, label_index(classes, logits.device), logits)

    def task_sample(
        self, count: int, experience: Any = None, by_class: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return at most `count` training images, a fixed draw, and their labels, on the CPU.

        Args:
            count: images.
            experience: the task; default the current one.
            by_class: draw equally many from each class, and at least one.
        """
        data = (experience or self.experience).dataset
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        if by_class:
            targets = torch.as_tensor(list(data.targets))[order]
            limit = max(1, count // len(targets.unique()))
            order = torch.cat([order[targets == label][:limit] for label in targets.unique()])
        else:
            order = order[:count]
        return read_samples(data, order.sort().values.tolist())
