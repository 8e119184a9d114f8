"""`Results`: finished runs in Python and in notebooks, as tables, arrays and figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from cl_clipfit.errors import UserError, nearest
from cl_clipfit.report.columns import by_strategy
from cl_clipfit.report.grid import grid, latex, markdown, page
from cl_clipfit.report.kept_metrics import Metric, measured
from cl_clipfit.report.tables import results_table
from cl_clipfit.storage.files import sha256
from cl_clipfit.storage.result import RESULT, Result, read_result
from cl_clipfit.storage.run_folder import file_name, stream_name

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


class Results(list[Result]):
    """Finished runs, in order; a list of `Result`.

    In a notebook, the value of a cell is shown as a table.
    """

    @property
    def contents(self) -> list[dict[str, Any]]:
        """Return the content of every run's `result.json`."""
        return [result.content for result in self]

    @property
    def labels(self) -> list[str]:
        """Return the labels of the methods, in order of appearance."""
        return list(by_strategy(self.contents))

    def with_metrics(self, *metrics: str | Path | Metric) -> "Results":
        """Return the runs with metrics of the predictions that they keep; tables show these too.

        Args:
            *metrics: names of `run.py list metrics`, Python files, or functions of a run's
                `Predictions` (before training and after each task) and its `result.json`.

        Raises:
            UserError: no run kept predictions, or a metric is unknown or fails.

        Example:
            >>> from cl_clipfit import load_results
            >>> load_results("runs").with_metrics("worst-class").to_markdown()  # doctest: +SKIP
        """
        return Results(measured(self, metrics)) if metrics else self

    def table(self) -> Table:
        """Return the table that the command line prints; `rich.print` shows it."""
        return results_table(self.contents)

    def to_markdown(self) -> str:
        """Return the table in Markdown, the best of every column in bold."""
        return markdown(grid(self.contents))

    def to_latex(self) -> str:
        """Return the table for LaTeX's package booktabs, the best of every column in bold."""
        return latex(grid(self.contents))

    def _repr_html_(self) -> str:
        return page(grid(self.contents)) if self else "no runs"

    def to_frame(self) -> "pandas.DataFrame":
        """Return a row per run: scenario, strategy, seed, metrics in percent, and its folder.

        Raises:
            ImportError: pandas is not installed (`pip install "cl-clipfit[pandas]"`).
        """
        import pandas

        return pandas.DataFrame(
            {
                "scenario": content["scenario"],
                "strategy": content["label"],
                "seed": content["seed"],
                **content["metrics"],
                "folder": str(result.path),
            }
            for result, content in zip(self, self.contents, strict=True)
        )

    def matrix(self, label: str, kind: str = "seen") -> np.ndarray:
        """Return a method's accuracy table, the mean over its seeds.

        Args:
            label: the method, as "full:ce_scope=task".
            kind: "seen" (labels are the classes seen), "all" (all classes of the stream) or
                "task" (each task's own classes).

        Returns:
            (T + 1, tasks) in percent: row t after task t, row 0 before training; NaN where
            undefined.

        Raises:
            KeyError: no run has this label.
            ValueError: `kind` is unknown.
        """
        tables = {
            "seen": "accuracy_matrix", "all": "all_classes_matrix", "task": "task_aware_matrix",
        }  # fmt: skip
        if kind not in tables:
            raise ValueError(f"kind '{kind}': expected one of {', '.join(tables)}")
        runs = [content for content in self.contents if content["label"] == label]
        if not runs:
            raise KeyError(f"no run of '{label}'. {nearest(label, self.labels)}")
        return np.array([run[tables[kind]] for run in runs], dtype=float).mean(0)

    def plot(self) -> "Figure":
        """Return the figure of the curves: mean and 95 % interval over seeds.

        Raises:
            ValueError: no run has a curve.
        """
        from cl_clipfit.report.figures import comparison_figure

        figure = comparison_figure(self.contents)
        if figure is None:
            raise ValueError("no run has a curve with a value")
        return figure

    def write_report(
        self, path: Path | str, *, mixed: bool = False, figures: Path | str | None = None
    ) -> Path:
        """Write a page of everything there is to see of the runs, in one file that needs no other.

        Args:
            path: the file, or a folder, which gets a `report.html`.
            mixed: show runs of several class orders together, as a command's tables do; otherwise,
                runs of unlike protocols have a part of the page each.
            figures: a folder, which gets every figure of the page as SVG and PNG.

        Returns:
            the file.

        Raises:
            UserError: there is no run, the files of one are damaged, or the file cannot be written.
        """
        from cl_clipfit.report.html.write import write_report

        folder = None if figures is None else Path(figures)
        return write_report(self, Path(path), mixed=mixed, figures=folder)


def load_results(*paths: Path | str) -> Results:
    """Read finished runs from disk.

    Args:
        *paths: folders of runs, or folders that hold some at any depth; default: "runs".

    Raises:
        UserError: a folder does not exist or holds no finished run, or a result is damaged.

    Example:
        >>> from cl_clipfit import load_results
        >>> load_results("runs").to_frame()  # doctest: +SKIP
    """
    found: dict[str, Result] = {}  # by digest: a copy of a run is the same run
    for path in map(Path, paths or ("runs",)):
        if not path.is_dir():
            raise UserError(f"{path} is not a folder: name a run's, or one that holds several runs")
        results = {file.parent: read_result(file) for file in _files(path)}
        whole = {folder: content for folder, content in results.items() if content is not None}
        if not whole:
            raise UserError(f"{path}: no finished run is in it")
        found |= {content["digest"]: Result(folder, content) for folder, content in whole.items()}
    return Results(_distinct_labels(list(found.values())))


def by_protocol(results: Results, across_orders: bool = False) -> list[Results]:
    """Return the runs of each protocol, whose numbers are comparable, in order of appearance.

    Args:
        results: the runs.
        across_orders: put class orders together, whose runs differ as those of seeds do.
    """
    groups: dict[tuple[str, ...], Results] = {}
    for result in results:
        protocol = protocol_of(result.content)
        if across_orders:
            del protocol["class order"]
        groups.setdefault(tuple(protocol.values()), Results()).append(result)
    return list(groups.values())


def _files(path: Path) -> list[Path]:
    return [path / RESULT] if (path / RESULT).is_file() else sorted(path.rglob(RESULT))


def protocol_of(content: Mapping[str, Any]) -> dict[str, str]:
    """Return, by name, what two runs must share for their numbers to be comparable."""
    model, cut = content["model"], content.get("stream", {})
    return {
        "stream": f"{stream_name(content['scenario'], content['data'])}"
        f" {content['data']['sha256'][:8]}",
        "cut": ", ".join(f"{name}={value}" for name, value in cut.items()),
        "tasks": str(len(content["tasks"])),
        "class order": _digest([content["class_order"], content["tasks"]]),
        "templates": _digest(content.get("templates")),
        "weights": f"{model['architecture']} {model['pretrained']} {model['weights_sha256'][:8]}",
        "scored on": content["scored_on"],
    }


def protocol_name(content: Mapping[str, Any]) -> str:
    """Return a name for the files of a run's protocol: its stream, and four digits."""
    return f"{file_name(content['scenario'])}-{_digest(protocol_of(content))[:4]}"


def _distinct_labels(results: list[Result]) -> list[Result]:
    """Name runs apart that share protocol, label and seed: they differ in settings or code."""
    variants = dict[tuple[Any, ...], set[str]]()

    def key(content: Mapping[str, Any]) -> tuple[Any, ...]:
        return (*protocol_of(content).values(), content["label"], content["seed"])

    for result in results:
        variants.setdefault(key(result.content), set()).add(_variant(result.content))
    ambiguous = {k[:-1] for k, found in variants.items() if len(found) > 1}  # for all seeds
    return [
        Result(r.path, {**r.content, "label": f"{r.label} ({_variant(r.content)})"})
        if key(r.content)[:-1] in ambiguous
        else r
        for r in results
    ]


def _variant(content: Mapping[str, Any]) -> str:
    """Return four digits that identify the settings and the code of a method."""
    parts = ("recipe", "options", "host", "precision", "code")
    return _digest([content.get(part) for part in parts])[:4]


def _digest(value: object) -> str:
    return sha256(repr(value).encode())[:8]
