"""The settings of a command, in groups, and `RunConfig`, which combines them."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from cl_clipfit.config.options import Count, Number, Positive, Seed, explain, shortened
from cl_clipfit.errors import UserError, nearest, program

MERGED_FROM = "merged_from"  # key in the config.yaml of a run that was merged from another run
RECIPE_OPTIONS = ("epochs", "batch_size", "lr")  # options that are settings of a recipe
Group = TypeVar("Group", bound=BaseModel)


class CutSettings(BaseModel):
    """How the images of a data set become a stream; every setting changes results."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shots: Count | None = Field(None, description="training images per class")
    validation: Annotated[float, Number, Field(gt=0, lt=1)] | None = Field(
        None, description="score this share of the training images, not the stream's test images"
    )
    limit: Count | None = Field(
        None, description="at most this many images per class, of probes too"
    )
    online: Count | None = Field(
        None, description="each image is seen once, in experiences of this many images"
    )
    blurry: Annotated[float, Number, Field(gt=0, lt=1)] | None = Field(
        None, description="share of each class's training images that arrive in other tasks"
    )

    def cut(self) -> dict[str, Any]:
        """Return only these settings, by name."""
        return {name: getattr(self, name) for name in CutSettings.model_fields}


class StreamSettings(CutSettings):
    """Which stream: the scenario, its tasks and class order, prompts and probes."""

    scenario: str = Field(
        "split-digits", description="stream of tasks, with settings as base-to-novel:dataset=dtd"
    )
    tasks: Count | Path | None = Field(
        None, description="number of tasks, or a YAML file that names each task's classes"
    )
    base_classes: Count | None = Field(
        None, description="classes of the first task; --tasks counts it too"
    )
    class_order: list[str] = Field(
        [],
        description="natural, pycil-1993, der-cifar100, rapf-imagenet-r, seed:N, or a file; of"
        " several, each is run",
    )
    template: list[str] | None = Field(
        None, description="prompt with {} for the class name; several make an ensemble"
    )
    probe: list[str] | None = Field(
        None, description="scenarios whose test set shows what is retained; without a name: none"
    )

    @field_validator("class_order", mode="before")
    @classmethod
    def _list_orders(cls, value: Any) -> Any:
        if isinstance(value, list):
            return list(dict.fromkeys(value)) if all(isinstance(v, str) for v in value) else value
        return [] if value is None else [value]


class DataSettings(BaseModel):
    """Where the data are; a run is identified by the hash of the data, not by these paths."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_dir: Path | None = Field(None, description="folder or archive of the data set")
    class_names: Path | None = Field(
        None, description="file with one class name per line, or YAML: old name to new"
    )
    prompts: list[Path] | None = Field(
        None, description="CSV files with lines class,prompt: prompts of single classes"
    )
    then: list[Path] | None = Field(
        None, description="folders of images whose classes arrive afterwards, a task each"
    )
    split: Path | None = Field(None, description="JSON file that says which images train and test")
    skip_bad_images: bool = Field(False, description="leave out images that cannot be read")
    unverified_data: bool = Field(
        False, description="accept data files that are not the official ones"
    )


class TrainingSettings(BaseModel):
    """Which methods train, with which seeds and recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: list[str] = Field(
        ["zero-shot", "clipfit", "mergetune", "stack"],
        min_length=1,
        description="methods to run, with settings as clipfit:kd_weight=2,lr=1e-3",
    )
    seed: list[Seed] = Field([0], min_length=1, description="one run for each seed")
    data_seed: Seed | None = Field(
        None, description="seed of data order, crops and other random training choices; "
        "default --seed"
    )  # fmt: skip
    init_seed: Seed | None = Field(
        None, description="seed of the initial values of new parameters; default --seed"
    )
    recipe: Literal["default", "published"] = Field(
        "default", description="the scenario's recipe, or that of each method's paper"
    )
    epochs: Count | None = Field(None, description="epochs per task")
    batch_size: Count | None = Field(None, description="images per training step")
    lr: Positive | None = Field(None, description="peak learning rate")
    on_nan: Literal["stop", "skip"] = Field(
        "stop", description="on a NaN or infinite loss: stop, or skip the step"
    )
    set: list[str] = Field([], description="NAME.key=value: an option of a strategy or scenario")
    plugin: list[Path] = Field([], description="Python file with a strategy or scenario")


class ComputeSettings(BaseModel):
    """The model and how to compute, as requested; `Compute` holds the resolved values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(
        None,
        description="ARCH:TAG of open_clip, ARCH[:TAG]:FILE, ARCH:random, or mini; of one's own:"
        " CONFIG.json:FILE, local-dir:FOLDER, hf-hub:ORG/REPO",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N, mps")
    precision: Literal["fp32", "bf16", "auto"] = Field(
        "auto",
        description="arithmetic of the towers; auto: bf16 for wide ones on hardware that has it",
    )
    micro_batch: Literal["auto"] | Count = Field(
        "auto", description="training images in memory at once; auto: fewer where they do not fit"
    )
    recompute: bool = Field(
        False, description="keep fewer activations in memory, and compute them a second time"
    )
    compile: bool = Field(
        False, description="train through torch.compile; the compile time is reported"
    )
    deterministic: bool = Field(
        False, description="the same bits in every run on the same machine, or an error"
    )

    @field_validator("device")
    @classmethod
    def _check_device(cls, value: str) -> str:
        kind, colon, number = value.partition(":")
        if value not in ("auto", "cpu", "mps", "cuda") and not (
            kind == "cuda" and colon and number.isascii() and number.isdigit()
        ):
            raise ValueError(f"expected {cls.model_fields['device'].description}")
        return value


class OutputSettings(BaseModel):
    """Where results go, and what happens to runs that already exist."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    output: Path = Field(Path("runs"), description="folder of all run folders")
    config: Path | None = Field(None, description="YAML file of these settings; options win")
    fresh: bool = Field(False, description="repeat runs that are already complete")
    resume: Path | None = Field(None, description="resume the unfinished run in this folder")
    force_resume: bool = Field(False, description="resume even though settings differ")
    log: list[Literal["tensorboard", "wandb", "csv"]] = Field(
        [], description="write the history of every run for these too, into OUTPUT/logs"
    )
    no_predictions: bool = Field(
        False, description="do not keep the predictions for every test image in the run's folder"
    )
    quiet: bool = Field(False, description="print only the results")
    dry_run: bool = Field(
        False, description="show what would run, where, how long and how large; train nothing"
    )
    print_config: bool = Field(False, description="print the settings as YAML for --config")

    @field_validator("resume", "force_resume")
    @classmethod
    def _check_resume(cls, value: Any, info: ValidationInfo) -> Any:
        if info.field_name == "resume" and value is not None and info.data.get("fresh"):
            raise ValueError("a run is either resumed or repeated: leave out this one or --fresh")
        if info.field_name == "force_resume" and value and info.data.get("resume") is None:
            raise ValueError("it needs --resume FOLDER, which is missing")
        return value


class RunConfig(OutputSettings, ComputeSettings, TrainingSettings, DataSettings, StreamSettings):
    """Everything one command may set; each field is the option of that name.

    Example:
        >>> RunConfig(scenario="split-digits", shots=16).group(CutSettings).shots
        16
    """

    @field_validator(
        "model", "tasks", "class_order", "class_names", "split", "data_dir", "then", "prompts",
        "output", "config", "plugin", "resume", check_fields=False,
    )  # fmt: skip
    @classmethod
    def _check_paths(cls, value: Any) -> Any:
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, str | Path):
                _check_path(path)
        return value

    def as_yaml(self) -> str:
        """Return the settings, with their defaults, as a file that `--config` reads back.

        Without those that say what becomes of existing runs, or what is printed.
        """
        import yaml

        settings = self.model_dump(mode="json", exclude_none=True)
        left_out = OutputSettings.model_fields.keys() - {"output"}
        kept = {name: value for name, value in settings.items() if name not in left_out}
        return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)

    def by_class_order(self) -> list["RunConfig"]:
        """Return a command for each class order."""
        orders = [self.model_copy(update={"class_order": [name]}) for name in self.class_order]
        return orders or [self]

    def group(self, kind: type[Group]) -> Group:
        """Return one group of these settings, as an object of that class."""
        fields = {name: getattr(self, name) for name in kind.model_fields}
        given = self.model_fields_set & fields.keys()
        return kind.model_construct(_fields_set=given, **fields)


def _check_path(path: str | Path) -> None:
    """Refuse paths that no file can have, or that neither a terminal nor a YAML file can show."""
    text = str(path)
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        raise ValueError("a path must not hold control characters, or halves of others")
    os.fsencode(text)  # raises a ValueError if the file system's encoding lacks a character


def _unusable(file: Path, reason: str) -> UserError:
    return UserError(f"--config {file}: {reason}", reason=reason)


def read_config(file: Path, ignored: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file of `RunConfig` settings.

    Args:
        file: the file.
        ignored: other keys that the file may have; they are not returned.

    Raises:
        UserError: the file is missing, unreadable or not a mapping, or a setting is unknown or
            invalid.
    """
    from cl_clipfit.config.text_files import LARGEST_YAML, check_size, load_yaml

    try:
        check_size(file, f"--config {file}", LARGEST_YAML)
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise _unusable(file, f"cannot read it: {reason}") from error
    try:
        values = load_yaml(text)
    except Exception as error:  # PyYAML may raise anything on values of a wrong type
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise _unusable(file, f"not valid YAML: {reason}") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise _unusable(file, "expected settings as 'name: value' lines")
    values = {shortened(key): value for key, value in values.items() if key not in ignored}
    if MERGED_FROM in values:
        raise _unusable(
            file,
            f"this run was merged from {values[MERGED_FROM]}: repeat it with {program()} merge",
        )
    settings = [name for name in RunConfig.model_fields if name != "config"]
    unknown = [str(key)[:100] for key in values if key not in settings]
    if unknown:
        raise _unusable(file, f"unknown setting '{unknown[0]}'. {nearest(unknown[0], settings)}")
    try:
        RunConfig.model_validate(values)
    except ValidationError as error:
        raise _unusable(file, explain(error)) from error
    return values
