"""Load a finished run as a classifier of new images; the data it was trained on are not needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cl_clipfit.bank.store import DeltaBank
from cl_clipfit.clip import create_classifier
from cl_clipfit.clip.feature_classifier import FEATURES
from cl_clipfit.config.command import RunConfig, read_config
from cl_clipfit.config.parsing import parse_command
from cl_clipfit.data.images.lazy import ImageFiles, LazyImages
from cl_clipfit.errors import UserError, is_file, nearest
from cl_clipfit.experiment.build import build_strategy, select_first
from cl_clipfit.experiment.calibration import sureness
from cl_clipfit.experiment.reopen import available_device, check_version, load_head, open_bank
from cl_clipfit.experiment.run_plan import resolve
from cl_clipfit.experiment.stream_plan import StreamPlan
from cl_clipfit.methods.per_task import PerTaskStrategy
from cl_clipfit.registry import Registry
from cl_clipfit.runtime.progress import Progress
from cl_clipfit.storage.calibration import read_threshold
from cl_clipfit.storage.result import RESULT, read_result
from cl_clipfit.storage.run_folder import CONFIG, MERGED_FROM
from cl_clipfit.training.strategy import CLIPStrategy

# Settings that name files; what they said is in `result.json`.
_OF_THE_DATA = (
    "data_dir", "then", "prompts", "split", "class_names", "tasks", "class_order", "probe",
)  # fmt: skip
Labels = list[tuple[str, float]]


@dataclass
class LoadedRun:
    """A finished run that classifies new images; nothing that is changed here is written to disk.

    Attributes:
        path: its folder.
        result: content of its `result.json`.
        stream: the stream that it learned, as its command describes it.
        strategy: the method after its last task.
        classes: labels of the classes that it chooses from: those that it learned, until some are
            removed.
        new_names: what classes are called now, by label.
    """

    path: Path
    result: dict[str, Any]
    stream: StreamPlan
    strategy: CLIPStrategy
    classes: tuple[int, ...]
    new_names: dict[int, str] = field(default_factory=dict)

    @property
    def class_names(self) -> list[str]:
        """Return the names of the classes that it chooses from."""
        names = self.strategy.model.class_names
        return [self.new_names.get(label, names[label]) for label in self.classes]

    def rename(self, names: Mapping[str, str]) -> None:
        """Call classes by other names; how they are recognised stays as it was learned.

        Args:
            names: new names by old ones.

        Raises:
            UserError: a class is unknown, or a name is empty or would be that of two classes.
        """
        renamed = {self._label(old): new for old, new in names.items()}
        after = {label: renamed.get(label, name) for label, name in self._by_label().items()}
        for new in names.values():
            if not new.strip() or [*after.values()].count(new) > 1:
                raise UserError(f"rename: '{new}' is empty, or the name of another class")
        self.new_names |= renamed

    def remove(self, names: Sequence[str]) -> None:
        """Leave classes out of what images are classified as.

        Raises:
            UserError: a class is unknown, or none would be left.
        """
        gone = {self._label(name) for name in names}
        left = tuple(label for label in self.classes if label not in gone)
        if not left:
            raise UserError("remove: at least one class must stay")
        self.classes = left

    def set_prompts(self, prompts: Mapping[str, Sequence[str]]) -> None:
        """Describe classes by other prompts, without training.

        Args:
            prompts: of each class by its name: whole, or with one "{}" for the name it was learned
                by; several form an ensemble.

        Raises:
            UserError: a class is unknown, a prompt is too long for the text tower, or the method
                does not classify by prompts.
        """
        model = self.strategy.model
        if not self.strategy.compares_text or model.context is not None:
            raise UserError(f"set_prompts: {self.result['label']} does not classify by prompts")
        for label, chosen in {self._label(n): c for n, c in prompts.items()}.items():
            model.set_prompts(label, [chosen] if isinstance(chosen, str) else chosen)

    def _by_label(self) -> dict[int, str]:
        return dict(zip(self.classes, self.class_names, strict=True))

    def _label(self, name: str) -> int:
        """Return the label of a class.

        Raises:
            UserError: no class has this name, or several have.
        """
        labels = [label for label, known in self._by_label().items() if known == name]
        if len(labels) != 1:
            why = f"{len(labels)} classes have it" if labels else nearest(name, self.class_names)
            raise UserError(f"the class name '{name}' tells no class: {why}")
        return labels[0]

    def probabilities(self, images: "Images") -> Tensor:
        """Return the softmax of the method's scores, (N, len(class_names)), on the CPU.

        They are probabilities as far as the method's scores are logits: those of a ridge head, for
        example, only rank the classes.

        Args:
            images: paths, PIL images, or uint8 (N, 3, H, W).

        Raises:
            UserError: a file cannot be read as an image.
        """
        return self._scores(images).softmax(1)

    def _scores(self, images: "Images") -> Tensor:
        """Return the method's scores of the classes that it learned, (N, C)."""
        scores = self.strategy.score_all(self._sized(images))
        return scores[:, list(self.classes)].float()

    def predict(self, images: "Images", top: int = 5, unknown: bool = False) -> list[Labels]:
        """Return, for each image, its most probable classes: names and probabilities.

        Args:
            images: as in `probabilities`.
            top: how many; all if there are fewer.
            unknown: leave an image open that fits no class: its list is empty. That is so if the
                method is less sure of it than of 95 % of its training images, as the run has
                measured it.

        Raises:
            UserError: a file cannot be read as an image, or the run has not measured it.
        """
        least = read_threshold(self.path) if unknown else None
        scores = self._scores(images)
        fits = [True] * len(scores) if least is None else (sureness(scores) >= least).tolist()
        found = scores.softmax(1).topk(min(top, len(self.classes)), 1)
        names = self.class_names
        return [
            [(names[i], p) for i, p in zip(chosen, values, strict=True)] if fit else []
            for chosen, values, fit in zip(
                found.indices.tolist(), found.values.tolist(), fits, strict=True
            )
        ]

    def _sized(self, images: "Images") -> Any:
        """Return images as the method takes them, uint8 (N, 3, *size), or decoded on demand."""
        fit = self.strategy.model.preprocess
        if isinstance(images, Tensor):
            return LazyImages([images], fit)
        if all(isinstance(image, Image.Image) for image in images):
            return torch.stack([fit.fit_image(image.convert("RGB")) for image in images])  # type: ignore[union-attr]
        return LazyImages([ImageFiles(tuple(Path(image) for image in images))], fit)  # type: ignore[arg-type]


Images = Sequence[Path | str] | Sequence[Image.Image] | Tensor


def load_run(
    path: Path | str, progress: Progress | None = None, device: str | None = None
) -> LoadedRun:
    """Load what a finished run learned, to classify images that it has never seen.

    Class names and templates are those of `result.json`, so that the data need not be there.

    Args:
        path: folder of the run.
        progress: receives notes and warnings; default none.
        device: where to compute; default where the run was trained, or the CPU if this machine
            lacks it.

    Raises:
        UserError: there is no finished run, its weights or its bank are not those it was made with,
            or it holds features in place of images.

    Example:
        >>> from cl_clipfit import load_run
        >>> model = load_run("runs/split-digits-stack-s0-1a2b3c4d")  # doctest: +SKIP
        >>> model.predict(["seven.png"])[0][0]  # doctest: +SKIP
        ('seven', 0.98)
    """
    path, progress = Path(path).resolve(), progress or Progress()
    result = read_result(path / RESULT)
    if result is None or not is_file(path / CONFIG):
        raise UserError(f"{path}: no finished run is in this folder")
    settings = read_config(path / CONFIG, ignored=(MERGED_FROM,))
    for name in _OF_THE_DATA:
        settings.pop(name, None)
    settings["device"] = device or available_device(str(settings.get("device", "cpu")), progress)
    config = RunConfig.model_validate(settings)
    registry = Registry(config.plugin)
    resolved = resolve(parse_command(config), registry)
    stream, plan = resolved.stream, resolved.plans[0]
    if stream.model == FEATURES:
        raise UserError(f"{path}: this run was trained on features, and has no model for images")
    check_version(path, result, progress)
    model = create_classifier(stream.model, stream.compute.device)
    model.precision = result["precision"]
    names, tasks = _classes(path, result)
    compute = replace(stream.compute, precision=model.precision)
    templates = [t if isinstance(t, str) else tuple(t) for t in result["templates"]]
    strategy = build_strategy(plan, compute, model, names, templates)
    select_first(plan, strategy, tasks[0])
    strategy.task_classes = tasks[-1]
    strategy.seen_classes = list(dict.fromkeys(c for classes in tasks for c in classes))
    if plan.cls.learning != "none":
        _load_last(open_bank(path, strategy, model.identity), strategy)
    elif model.identity and model.identity.weights_sha256 != result["model"]["weights_sha256"]:
        raise UserError(f"{path}: the model's weights are not those of the run")
    return LoadedRun(path, result, stream, strategy, tuple(strategy.seen_classes))


def _load_last(bank: DeltaBank, strategy: CLIPStrategy) -> None:
    """Give a strategy the weights and the head of the last task."""
    last, files = len(bank), bank.index["tasks"][-1]["files"]
    if isinstance(strategy, PerTaskStrategy):
        every = range(1, last + 1)
        kept = [bank.load(t) for t in every], [bank.load(t, "statistics") for t in every]
        strategy.load_tasks(*kept)
    if "values" in files:
        strategy.model.load_values(bank.load(last))
    load_head(bank, last, strategy)


def _classes(path: Path, result: dict[str, Any]) -> tuple[list[str], list[list[int]]]:
    """Return all class names in label order, and the labels of each trained task."""
    trained = len(result["accuracy_matrix"]) - 1
    groups = [task["classes"] for task in result["tasks"]]
    count = len(result["class_order"])
    names = [name for group in groups for name in group]
    if len(names) == count:
        starts = [sum(map(len, groups[:t])) for t in range(len(groups))]
        labels = [list(range(s, s + len(g))) for s, g in zip(starts, groups, strict=True)]
        return names, labels[:trained]
    names = list(dict.fromkeys(names))  # tasks share classes
    if len(names) != count:
        raise UserError(f"{path / RESULT}: classes of one name cannot be told apart")
    return names, [[names.index(name) for name in group] for group in groups[:trained]]
