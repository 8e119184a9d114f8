"""The runs of a sweep, resolved as on the command line, and which of them are finished."""

import functools
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cl_clipfit.clip import ModelIdentity
from cl_clipfit.clip.feature_classifier import FEATURES
from cl_clipfit.config.command import RECIPE_OPTIONS, RunConfig
from cl_clipfit.config.model_names import with_absolute_paths
from cl_clipfit.config.options import explain
from cl_clipfit.config.parsing import parse_command
from cl_clipfit.errors import UserError, nearest
from cl_clipfit.experiment.identity import run_digest, settings_hash
from cl_clipfit.experiment.run_plan import ResolvedCommand, resolve
from cl_clipfit.registry import Registry
from cl_clipfit.storage.files import writing
from cl_clipfit.sweep.file import Cell, SweepFile, as_options, assigned_name, describe
from cl_clipfit.sweep.job import Job

INDEX = "sweep-index.jsonl"  # in the output folder: which run folder holds which settings
_FILES = ("data_dir", "split", "class_names", "then", "prompts")  # settings that name files


class Registries(dict[tuple[str, ...], Registry]):
    """Strategies and scenarios, with the plug-ins of each run; reading them takes time."""

    def of(self, cell: Cell) -> Registry:
        """Return those for the plug-ins of a run."""
        plugins = tuple(map(str, as_options(cell).get("plugin") or ()))
        if plugins not in self:
            self[plugins] = Registry(map(Path, plugins))
        return self[plugins]


def plan_jobs(sweep: SweepFile, output: Path) -> list[Job]:
    """Resolve every run of a sweep without reading data; equal runs come once.

    Raises:
        UserError: a setting or a combination is refused; the message names the key and its line.
    """
    _state.cache_clear()  # files may have changed since an earlier call
    registries = Registries()
    jobs: dict[str, Job] = {}
    used: set[str] = set()
    varying = sweep.varying()
    for cell in sweep.cells():
        registry = registries.of(cell)
        try:
            resolved, kept = resolve_cell(cell, registry)
        except UserError as error:
            raise placed(error, sweep, cell, varying) from error
        used.update(kept)
        shown = varying if resolved.plans[0].recipe else varying - {"recipe", *RECIPE_OPTIONS}
        job = make_job(resolved, kept, describe(kept, shown), output)
        jobs.setdefault(job.key, job)
    for key in (key for cell in sweep.cells() for key in cell if key not in used):
        names = sorted({str(assigned_name(k)) for k in used if assigned_name(k)} | _names(sweep))
        raise UserError(
            f"{sweep.place(key)}: no run of the sweep is of {assigned_name(key)}."
            f" {nearest(str(assigned_name(key)), names)}"
        )
    return list(jobs.values())


def _names(sweep: SweepFile) -> set[str]:
    cells = sweep.cells()
    return {str(c["strategy"]).partition(":")[0] for c in cells} | {
        str(c.get("scenario", "split-digits")).partition(":")[0] for c in cells
    }


def resolve_cell(cell: Cell, registry: Registry) -> tuple[ResolvedCommand, Cell]:
    """Resolve a run with those assignments whose strategy or scenario it has; return these too.

    Raises:
        UserError: a name is unknown, or a setting does not fit.
    """
    names = {str(cell["strategy"]), str(cell.get("scenario", RunConfig().scenario))}
    names = {name.partition(":")[0].strip() for name in names}
    while True:
        kept = {k: v for k, v in cell.items() if assigned_name(k) in (None, *names)}
        config = _config(kept)
        # What this machine has does not matter: runs may take place elsewhere.
        anywhere = config.model_copy(update={"device": "cpu", "precision": "auto"})
        resolved = resolve(parse_command(anywhere), registry)
        stream = resolved.stream
        more = {entry.name for entry in (*stream.parts, *stream.probes)}
        more |= {base.strategy.name for plan in resolved.plans for base in plan.bases}
        if more <= names or not any(assigned_name(key) in more - names for key in cell):
            return resolved, kept
        names |= more


def _config(cell: Cell) -> RunConfig:
    try:
        return RunConfig.model_validate(as_options(cell))
    except ValidationError as error:
        raise UserError(explain(error, "--")) from error


def make_job(resolved: ResolvedCommand, cell: Cell, label: str, output: Path) -> Job:
    """Return the job of a run.

    Args:
        resolved: the run as resolved on any device.
        cell: its settings.
        label: the method and the settings of it that vary.
        output: folder of all run folders.
    """
    config, stream, plan = _config(cell), resolved.stream, resolved.plans[0]
    settings = config.model_dump(mode="json", exclude_unset=True)
    settings = {key: _absolute(key, value) for key, value in settings.items()}
    where = {"device": config.device, "precision": config.precision}
    data = {**stream.settings.model_dump(mode="json"), **where, "model": stream.model}
    data |= stream.data_settings.model_dump(mode="json")
    data["options"] = [stream.options.model_dump(mode="json"), [p.name for p in stream.probes]]
    data["files"] = [[_state(file) for file in _each(settings.get(key))] for key in _FILES]
    data["files"] += [_state(config.tasks), _state(stream.model.rpartition(":")[2])]
    data["files"] += [_state(name) for name in config.class_order]
    identity = ModelIdentity(stream.model, "", "")
    key = run_digest(stream, plan, identity, [], {"sweep": data})
    encodes = "image" not in plan.cls.towers
    frozen = [plan.reads_train_images_as_they_are, plan.cls.class_tokens] if encodes else []
    shared = settings_hash({"data": data, "frozen": frozen, "seed": stream.shots_seed(plan.seed)})
    return Job(
        key=key,
        shared=shared,
        name=f"{config.scenario} {label} seed {plan.seed}",
        label=label,
        settings=settings,
        output=output.resolve(),
        encodes=None if stream.model == FEATURES else encodes,
    )


def _absolute(key: str, value: Any) -> Any:
    """Return a setting with absolute paths: a worker may have another working folder."""
    if key == "model" and value is not None:
        return with_absolute_paths(value)
    if key in (*_FILES, "plugin"):
        files = [str(Path(file).resolve()) for file in _each(value)]
        return files if isinstance(value, list) else next(iter(files), None)
    if key == "class_order":
        return [str(Path(name).resolve()) if Path(name).is_file() else name for name in value]
    if key == "tasks" and isinstance(value, str):
        return str(Path(value).resolve())
    return value


def _each(value: Any) -> list[Any]:
    """Return the items of a list; a single value as a list, and None as an empty one."""
    return value if isinstance(value, list) else [] if value is None else [value]


@functools.cache
def _state(path: Any) -> list[Any]:
    """Return size and time of change of a file, or of all files in a folder; [] if there is none.

    The digest of a run covers the contents of its data; this much can be asked every time.
    """
    file = Path(str(path))
    try:
        if path is None or not file.exists():
            return []
        files = [file] if file.is_file() else sorted(f for f in file.rglob("*") if f.is_file())
        states = [f.stat() for f in files]
    except OSError:
        return []
    return [len(files), sum(s.st_size for s in states), max(s.st_mtime_ns for s in states)]


def placed(error: UserError, sweep: SweepFile, cell: Cell, varying: set[str]) -> UserError:
    """Return the error of a run with the line of the setting that it names."""
    text = str(error).removeprefix("--set ")
    for key in cell:
        option = f"--{key.replace('_', '-')}"
        if text.startswith((f"{key}:", f"{key} ", f"{option} ", f"{option}:")):
            return UserError(f"{sweep.place(key)}: {text.removeprefix(key).lstrip(': ')}")
    run = ", ".join(f"{k}={v}" for k, v in cell.items() if k in varying)
    return UserError(f"{sweep.path}: run ({run}): {error}" if run else f"{sweep.path}: {error}")


class Index:
    """Which folder holds the run of which settings, in a file of the output folder.

    Args:
        output: folder of all run folders.
    """

    def __init__(self, output: Path) -> None:
        self.file = output / INDEX
        self._folders: dict[str, str] = {}
        if self.file.is_file():
            for line in self.file.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    entry = json.loads(line)
                    self._folders[entry["key"]] = Path(str(entry["folder"])).name
                except (ValueError, KeyError, TypeError):  # the line of a killed process
                    continue

    def folder(self, job: Job) -> Path | None:
        """Return the folder of a run that was finished once; it may have been removed since."""
        name = self._folders.get(job.key)
        return job.output / name if name else None

    def add(self, job: Job, folder: str) -> None:
        """Note the folder of a finished run.

        Raises:
            UserError: the file cannot be written.
        """
        if self._folders.get(job.key) == folder:
            return
        self._folders[job.key] = folder
        with writing(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": job.key, "folder": folder}) + "\n")
