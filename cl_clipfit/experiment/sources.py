"""Read the data sets that a command names: the stream's, with its layout, and those of probes."""

from dataclasses import replace
from pathlib import Path

from cl_clipfit.clip.prompts import DEFAULT_TEMPLATES
from cl_clipfit.config.command import DataSettings, RunConfig
from cl_clipfit.config.options import make_options
from cl_clipfit.config.parsing import Command
from cl_clipfit.config.text_files import read_class_names, read_prompts
from cl_clipfit.data.composed import followed_by, with_prompts
from cl_clipfit.data.formats.folders import data_name
from cl_clipfit.data.formats.splits import apply_split
from cl_clipfit.data.formats.trees import SplitOptions, read_tree
from cl_clipfit.data.images.lazy import hashed_by
from cl_clipfit.data.layout import Layout, make_layout
from cl_clipfit.data.source import DataRequest, Source, limit_images
from cl_clipfit.errors import UserError, is_folder
from cl_clipfit.experiment.scenario_file import load_source
from cl_clipfit.experiment.stream_plan import StreamPlan
from cl_clipfit.registry import Registry
from cl_clipfit.runtime.progress import Progress


def data_request(config: RunConfig, progress: Progress) -> DataRequest:
    """Return where data are looked for, and who is told about them."""
    return DataRequest(
        config.data_dir, config.unverified_data, progress.note, progress.transfer, progress.count
    )


def read_sources(
    command: Command, registry: Registry, stream: StreamPlan, request: DataRequest
) -> tuple[Source, dict[str, Source]]:
    """Read the stream's data, modified by the options, and those of the probes."""
    settings = stream.data_settings
    _check_data_dir(settings, stream, request)

    def other(name: str, folder: Path | None, test_only: bool = False) -> Source:
        entry = registry.get("scenarios", name)
        options = make_options(entry.options_class(), command.settings_of(name), name)
        try:
            of_entry = replace(request, data_dir=folder, test_only=test_only)
            source = load_source(entry, options, of_entry)
        except UserError as error:
            where = f"as part of {stream.entry.name}, PATH/{name} below --data-dir PATH does"
            raise UserError(f"{error} ({where})") from error
        is_divided = settings.split is not None and stream.parts == (entry,)
        return apply_split(source, settings.split) if is_divided and settings.split else source

    source = load_source(stream.entry, stream.options, replace(request, other=other))
    if settings.split is not None and len(stream.parts) != 1:
        source = apply_split(source, settings.split)
    if settings.class_names is not None:
        names = read_class_names(settings.class_names, source.class_names)
        source = replace(source, class_names=names)
    probes = {
        e.name: _as_probe(
            other(e.name, request.folder_of(e.name), test_only=True), stream.settings.limit
        )
        for e in stream.probes
    }
    hashed = [source.train, source.test, *(probe.test for probe in probes.values())]
    if any(hashed_by(data.images) != "contents" for data in hashed):
        source = replace(source, origin={**source.origin, "hashed": "names and sizes"})
    return source, probes


def _as_probe(source: Source, limit: int | None) -> Source:
    """Drop the training images, which are not used, and test images beyond the limit per class."""
    test = source.test if limit is None else limit_images(source.test, limit)
    return replace(source, train=source.train.none(), test=test)


def _check_data_dir(settings: DataSettings, stream: StreamPlan, request: DataRequest) -> None:
    """Refuse a folder that nothing would be read from; report what is read from elsewhere."""
    members = [e for e in (*stream.parts, *stream.probes) if e.about.get("DOWNLOAD") != "none"]
    of_one = len(stream.parts) < 2 and stream.data.about.get("DOWNLOAD") != "none"
    if of_one:  # the folder is the scenario's, and may contain those of probes
        members = [e for e in members if e in stream.probes]
    absent = [e.name for e in members if request.folder_of(e.name) is None]
    if settings.data_dir is None or not members:
        return
    if len(absent) == len(members) and not of_one:
        names = ", ".join(absent[:12])
        raise UserError(f"--data-dir {settings.data_dir} holds none of the folders {names}")
    if absent:
        request.note(f"not in --data-dir, so looked for where data are kept: {', '.join(absent)}")


def layout_of(source: Source, stream: StreamPlan) -> Layout:
    """Return the order and tasks of the classes of a stream."""
    tasks_file = stream.tasks if isinstance(stream.tasks, Path) else None
    tasks = stream.tasks if isinstance(stream.tasks, int) else None
    default = stream.facts.TASKS
    if tasks is None and isinstance(default, int) and not (source.task_names or tasks_file):
        tasks = min(default, len(source.class_names))
    return make_layout(
        source, tasks=tasks, order=stream.class_order, base_classes=stream.settings.base_classes,
        tasks_file=tasks_file,
    )  # fmt: skip


def with_following(source: Source, layout: Layout, stream: StreamPlan) -> tuple[Source, Layout]:
    """Append the folders that follow a stream, a task each, and give classes prompts of their own.

    Raises:
        UserError: a folder or file cannot be read, or the stream cannot be continued.
    """
    folders = stream.data_settings.then or []
    if folders and stream.settings.blurry is not None:
        raise UserError("--then: with --blurry the images of all tasks are mixed, leave out one")
    for folder in folders:
        if not is_folder(folder):
            raise UserError(f"--then {folder}: there is no such folder")
        tree = read_tree(folder, SplitOptions())
        more = Source(tree.names, DEFAULT_TEMPLATES, tree.train, tree.test, warnings=tree.warnings)
        source, layout = followed_by(source, layout, data_name(folder), more)
    if files := stream.data_settings.prompts:
        if source.text is not None:
            raise UserError(f"--prompts {files[0]}: features come with their text encoded")
        if stream.settings.template:
            source = replace(source, templates=tuple(stream.settings.template))
        for file in files:
            source = with_prompts(source, read_prompts(file, source.class_names))
    return source, layout
