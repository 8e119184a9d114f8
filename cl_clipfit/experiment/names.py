"""Check the names and paths of a command before PyTorch is imported, which takes seconds.

Everything is resolved again when the command runs (see `run_plan.py`), which also finds what only
imported code can tell. What is refused here is refused there.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path

from cl_clipfit.config.command import DataSettings, RunConfig
from cl_clipfit.config.model_names import explain_unknown
from cl_clipfit.config.options import Recipe, ScopeOptions
from cl_clipfit.config.parsing import Command, Spec, malformed, parse_command
from cl_clipfit.errors import UserError, is_file, nearest
from cl_clipfit.registry import Entry, Registry, describe


def check_names(config: RunConfig) -> None:
    """Check scenarios, strategies, keys of settings, the architecture and paths.

    Raises:
        UserError: one of them does not exist.
    """
    registry, command = Registry(config.plugin), parse_command(config)
    for name in (command.scenario.name, *(config.probe or ())):
        registry.get("scenarios", name)
    for spec in command.strategies:
        registry.get("strategies", spec.name)
    _check_keys(command, registry)
    if not config.plugin:  # which may register architectures
        _check_architecture(config.model)
    check_files(config)
    if isinstance(config.tasks, Path):
        check_tasks_file(config.tasks)


def settled(spec: Spec, entry: Entry) -> Spec:
    """Return a label of a strategy whose bare word has become the option that it stands for.

    Raises:
        UserError: the strategy declares no such option by `WORD`, or it is given twice.
    """
    if not spec.word:
        return spec
    option = entry.about.get("WORD")
    if option is None or option in spec.settings:
        raise malformed(spec.text)
    return replace(spec, settings={option: spec.word, **spec.settings}, word="")


def check_files(settings: DataSettings) -> None:
    """Refuse files of a data set that do not exist.

    Raises:
        UserError: one of them does not exist.
    """
    if settings.data_dir is not None and not is_file(settings.data_dir, or_folder=True):
        raise UserError(f"--data-dir {settings.data_dir}: there is no such file or folder")
    for option, file in (("--split", settings.split), ("--class-names", settings.class_names)):
        if file is not None and not is_file(file):
            raise UserError(f"{option} {file}: there is no such file")


def check_tasks_file(file: Path) -> None:
    """Refuse a file of `--tasks` that does not exist.

    Raises:
        UserError: it does not exist.
    """
    if not is_file(file):
        raise UserError(f"--tasks {file}: expected a number or a YAML file; there is no such file")


def architectures() -> list[str]:
    """Return the names of open_clip's architectures, from its files."""
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None and spec.origin is not None
    return sorted(file.stem for file in Path(spec.origin).parent.glob("model_configs/*.json"))


def _check_architecture(model: str | None) -> None:
    """Refuse a name that is not an architecture; names of hubs, files and folders are not known."""
    name, _, pretrained = (model or "").partition(":")
    if not name or name.lower().endswith(".json") or name in ("local-dir", "hf-hub"):
        return
    known = [*architectures(), "mini", "features"]
    if name not in known:
        raise UserError(explain_unknown(name, pretrained, known))


_HOSTED = {  # options with a host
    "ContinuedOptions", "MergingOptions", "ApartOptions", "HostedStrategy", "RehearsalOptions",
}  # fmt: skip


def _check_keys(command: Command, registry: Registry) -> None:
    """Refuse a key that no strategy or scenario has, if it is for one of this package.

    A strategy passes keys on to the one that it continues, so that any strategy's key may be right.
    """
    strategies, scenarios = registry.entries("strategies"), registry.entries("scenarios")
    entries = [*strategies, *scenarios]
    bases = [describe(file) for file in (Path(__file__).parents[1] / "methods").glob("*.py")]
    of_scenarios = {key for entry in scenarios for key in entry.keys}
    keys = {*Recipe.model_fields, *ScopeOptions.model_fields}
    keys.update(key for entry in (*strategies, *bases) for key in entry.keys)
    methods = [settled(s, registry.get("strategies", s.name)) for s in command.strategies]
    specs = (command.scenario, *methods)
    for name, settings in (*((s.name, s.settings) for s in specs), *command.assigned.items()):
        entry = next((e for e in entries if e.name == name), None)
        if entry is None or not entry.module.startswith("cl_clipfit."):
            continue  # what a plug-in takes is known when it is imported
        known = of_scenarios if entry.kind == "scenarios" else keys
        for key in (key for key in settings if key not in known):
            right = entry.keys if entry.kind == "scenarios" else keys
            lacks = f"{name} has no option"
            if "host" in entry.keys or _HOSTED & {*entry.bases}:
                lacks = f"neither {name} nor its host has an option"
            elif "base" in entry.keys:
                lacks = f"neither {name} nor its base has an option"
            raise UserError(f"--set {name}.{key}: {lacks} '{key}'. {nearest(key, right)}")
