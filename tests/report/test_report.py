"""Figures, tables and the screen: what is drawn, looked at through matplotlib's own objects."""

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from cl_clipfit import metrics
from cl_clipfit.errors import UserError
from cl_clipfit.registry import Registry
from cl_clipfit.report import figures
from cl_clipfit.report.columns import COLUMNS
from cl_clipfit.report.csv_tables import comparison_csv, modes_csv
from cl_clipfit.report.display import ConsoleDisplay, drawing, say
from cl_clipfit.report.style import looks_of
from cl_clipfit.report.tables import confidence_interval, modes_table, results_table
from tests.support.results import result
from tests.support.tiny import PLOT_CHANGES, PLOT_COMPARISON, PLOT_RUN


@pytest.fixture(autouse=True)
def _whole_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay figures out; other tests only write a line for them."""
    monkeypatch.setattr(figures, "plot_run", PLOT_RUN)
    monkeypatch.setattr(figures, "plot_changes", PLOT_CHANGES)
    monkeypatch.setattr(figures, "plot_comparison", PLOT_COMPARISON)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collect figures in place of writing them."""
    kept: list[Figure] = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: kept.append(figure))
    return kept


def names(figure: Figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_zero_shot_is_one_line_and_everybody_else_looks_different(drawn: list[Figure]) -> None:
    labels = ["zero-shot", *(f"method:x={n}" for n in range(9))]
    results = [result(label, seed) for label in labels for seed in (0, 1)]
    figures.plot_comparison(results, Path("x"))
    figures.plot_comparison([result("zero-shot")], Path("x"))
    figures.plot_comparison([result("full")], Path("x"))
    assert names(drawn[0]) == labels
    assert names(drawn[1]) == ["zero-shot"]
    assert names(drawn[2]) == ["zero-shot", "full"]  # the line to beat, though it was not asked for
    looks = {
        (line.get_color(), line.get_marker(), line.get_linestyle())
        for line in drawn[0].axes[0].lines
    }
    assert len(looks) == len(labels)


def test_a_method_has_one_colour_in_every_figure() -> None:
    registered = [entry.name for entry in Registry().entries("strategies")]
    alone = {name: looks_of([name])[name] for name in registered}
    together = looks_of(reversed(registered))
    assert {n: look["color"] for n, look in alone.items()} == {
        n: look["color"] for n, look in together.items()
    }
    assert len({tuple(look.values()) for look in together.values()}) == len(registered)
    assert looks_of(["full:lr=1e-5"])["full:lr=1e-5"]["color"] == alone["full"]["color"]
    shown = ("clipfit", "mergetune", "stack", "full", "lda")
    for part in ("color", "marker"):
        assert len({alone[name][part] for name in shown}) == len(shown)


def test_bands_are_the_intervals_of_the_table(drawn: list[Figure]) -> None:
    runs = [result("full", seed, level) for seed, level in enumerate((78.0, 80.0, 82.0))]
    figures.plot_comparison(runs, Path("x"))
    axes = drawn[0].axes[0]
    (band,) = axes.collections
    edges = sorted({float(y) for x, y in band.get_paths()[0].vertices if x == 1})
    half = confidence_interval([78.0, 80.0, 82.0])
    assert edges == pytest.approx([80 - half, 80 + half])
    assert "95 % interval of 3 seeds" in str(drawn[0].get_suptitle())


def test_figures_are_readable_at_half_a_page(drawn: list[Figure]) -> None:
    """At 6.5 inches of text width no label falls below 6 points."""
    figures.plot_comparison([result("full"), result("clipfit")], Path("x"))
    figures.plot_run(result("full"), Path("x"))
    figures.plot_changes(result("full"), Path("x"))
    assert len(drawn) == 3
    for figure in drawn:
        scale = min(1, 6.5 / figure.get_figwidth())
        for axes in figure.axes:
            assert axes.xaxis.label.get_fontsize() * scale >= 6


def test_what_did_not_train_has_no_figure_of_changes(drawn: list[Figure]) -> None:
    figures.plot_changes({**result("zero-shot"), "change_by_layer": [{}, {}]}, Path("x"))
    assert drawn == []


@pytest.mark.usefixtures("drawn_figures")
def test_two_equal_figures_have_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        figures.plot_changes(result("full"), tmp_path / name)
    for kind in ("png", "svg"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_one_task_and_tasks_without_images_can_be_drawn(drawn: list[Figure]) -> None:
    one = result("full")
    one["all_classes_matrix"] = [[50.0, None], [80.0, None]]
    one["curves"] = {  # the last task is only tested
        "accuracy": [None, 80.0], "forgetting": [None, None], "retention": [None, None],
        "zero_shot": [None, 60.0, 12.0],
    }  # fmt: skip
    one["change_by_layer"] = one["change_by_layer"][:1]
    figures.plot_run(one, Path("x"))
    figures.plot_comparison([one, {**one, "seed": 1}], Path("x"))
    figures.plot_changes(one, Path("x"))
    assert len(drawn) == 3
    for figure in drawn[:2]:
        figure.canvas.draw()
        assert names(figure) == ["zero-shot", "full"]
        line, own = figure.axes[0].lines
        assert list(line.get_ydata()) == [60.0, 60.0]
        assert list(own.get_xydata()[0]) == [1.0, 80.0]
    assert len(drawn[1].axes) == 1  # no empty panels
    matrix = drawn[0].axes[1]
    assert [text.get_text() for text in matrix.texts] == ["50", "80"]


def test_curves_of_different_lengths_are_refused_by_name(drawn: list[Figure]) -> None:
    longer = result("full", seed=1)
    longer["curves"] = {key: [*curve, 1.0] for key, curve in longer["curves"].items()}
    with pytest.raises(UserError, match="seed 1 has curves of a different length than seed 0"):
        figures.plot_comparison([result("full"), longer], Path("x"))
    figures.plot_comparison([result("full"), {**longer, "label": "other"}], Path("x"))
    assert len(drawn) == 1


def test_curves_without_a_number_have_no_figure(drawn: list[Figure], tmp_path: Path) -> None:
    empty = result("full")
    empty["curves"] = {key: [None] * 3 for key in empty["curves"]}
    stale = tmp_path / "compared.png"
    stale.touch()
    figures.plot_comparison([empty], tmp_path / "compared")
    assert drawn == [] and not stale.exists()
    figures.plot_run(empty, tmp_path / "curves")
    assert len(drawn) == 1 and drawn[0].axes[0].get_title(loc="left").startswith("accuracy among")


# ---- tables --------------------------------------------------------------------------------------

SHIFTS = ("imagenet-v2", "imagenet-sketch", "imagenet-a", "imagenet-r", "objectnet")


def outcome(
    protocol: str | None, label: str = "clipfit", seed: int = 0, probes: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return as much of a result as tables read; every number follows from the seed."""
    trained, columns = {"base-to-novel": (1, 2), "transfer": (1, 1)}.get(protocol or "", (3, 3))
    draw = torch.Generator().manual_seed(seed)

    def table() -> list[list[float | None]]:
        return (10 + 90 * torch.rand(trained + 1, columns, generator=draw)).tolist()

    found = {name: [80.0, 70.0 + n + seed] for n, name in enumerate(probes)}
    values = metrics.summarize(table(), table(), table(), [10] * columns, found)
    return {
        **({"protocol": protocol} if protocol else {}),
        "scenario": "tiny[1]", "label": label, "seed": seed, "scored_on": "test images",
        "tasks": [{}] * columns, "class_order": list(range(8)), "metrics": values, "probes": found,
        "model": {"trainable_parameters": 149_620_737},
        "timings": {"train_seconds": [1.0] * trained, "eval_seconds": [0.5] * (trained + 1)},
        "merge": None, "curves": {"zero_shot": [None] * (trained + 1)},
    }  # fmt: skip


def rendered(table: Table, width: int = 120) -> str:
    text = io.StringIO()
    Console(file=text, width=width).print(table)
    assert "…" not in text.getvalue()  # nothing cut off
    return text.getvalue()


def cells(table: Table, row: int = 0) -> list[str]:
    return [str(list(column.cells)[row]) for column in table.columns]


@pytest.mark.parametrize(
    ("protocol", "keys"),
    [
        (None, list(COLUMNS)),
        ("class-incremental", list(COLUMNS)),
        ("domain-incremental", list(COLUMNS)),
        (
            "mtil",
            [
                "transfer",
                "mtil_average",
                "mtil_last",
                "last_accuracy",
                "probe_accuracy",
                "retention",
            ],
        ),
        (
            "x-tail",
            [
                "x_tail_transfer",
                "x_tail_average",
                "x_tail_last",
                "last_accuracy",
                "probe_accuracy",
                "retention",
            ],
        ),
        ("base-to-novel", ["base", "novel", "harmonic_mean", "probe_accuracy", "retention"]),
    ],
)
def test_the_protocol_chooses_the_columns(protocol: str | None, keys: list[str]) -> None:
    one = outcome(protocol, probes=("letters",))
    expected = [f"{one['metrics'][key]:.1f}" for key in keys]
    table = results_table([one])
    seconds = sum(map(sum, one["timings"].values()))
    assert cells(table) == ["clipfit", *expected, "149,620,737", f"{seconds:.1f}"]
    mode = {"mode": "wise", "settings": {}, "metrics": one["metrics"], "probes": one["probes"]}
    assert cells(modes_table(one, [mode])) == ["wise", *expected, "-", "-"]
    rendered(results_table([outcome(protocol, seed=s, probes=("letters",)) for s in range(3)]))


def test_mtil_says_which_numbers_know_the_task() -> None:
    headers = [str(column.header) for column in results_table([outcome("mtil")]).columns]
    assert headers[1:5] == [
        "Transfer\ntask-aware", "Average\ntask-aware", "Last\ntask-aware",
        "last, all\nclasses seen",
    ]  # fmt: skip


@pytest.mark.parametrize("seeds", [1, 3])
def test_five_probes_are_readable_at_120_columns(seeds: int) -> None:
    labels = ("zero-shot", "clipfit:kd_weight=8")
    results = [outcome("transfer", label, s, SHIFTS) for label in labels for s in range(seeds)]
    table = results_table(results)
    numbers = [f"{70 + n + (seeds - 1) / 2:.1f}" for n in range(5)]
    first = [cell.partition("\n")[0] for cell in cells(table)]
    last = sum(r["metrics"]["last_accuracy"] for r in results[:seeds]) / seeds
    mean = 72 + (seeds - 1) / 2
    assert first == ["zero-shot", f"{last:.1f}", f"{mean:.1f}", *numbers, f"{mean - 80:.1f}"]
    text = rendered(table)
    words = text.split()  # whole ones: none is broken
    for word in (
        "imagenet-",
        "v2",
        "sketch",
        "imagenet-a",
        "imagenet-r",
        "objectnet",
        "retention",
        *labels,
    ):
        assert word in words
    for number in numbers:
        assert words.count(number) >= 2
    assert text.count("± 2.5") == (2 * 7 if seeds == 3 else 0)  # 4.303 / sqrt(3)
    assert "trainable parameters, seconds" in text  # said where the columns had to go


@pytest.mark.parametrize("width", [80, 120])
def test_a_table_leaves_out_columns_and_breaks_no_word(width: int) -> None:
    results = [outcome("transfer", seed=s, probes=(*SHIFTS, "letters")) for s in (1, 2)]
    for seed, one in enumerate(results):
        one["metrics"] |= {"joint_accuracy": 41.0 + seed, "joint_retention": -21.0 - seed}
    text = rendered(results_table(results), width)
    assert max(map(len, text.splitlines())) <= width
    note = "left out, in result.json: "
    *table, gone = text.split(note) if width == 80 else (text, "")
    words, dropped = "".join(table).split(), [name.strip() for name in gone.split(",")]
    assert (dropped == ["letters", "objectnet", "imagenet-r", "imagenet-a"]) == (width == 80)
    kept = 6 - 4 * (width == 80)
    numbers = [f"{71.5 + n}" for n in range(6)]
    assert [number in words for number in numbers] == [n < kept for n in range(6)]
    assert all(word in words for word in ("41.5", "-21.5", "retention", "accuracy", "imagenet-"))
    assert words.count("6.4") == kept + 4  # 12.706 / 2; of mean of probes, retention and joint


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_columns_go_by_priority_and_the_best_is_bold(width: int) -> None:
    runs = [outcome(None, label, probes=("letters",)) for label in ("full", "clipfit")]
    runs.append(outcome(None, "mergetune:host=coop,kd_weight=2,lr=0.001", 1, ("letters",)))
    for level, one in enumerate(runs):
        one["metrics"] |= {"joint_accuracy": 41.0, "joint_retention": -21.0 - level}
        one["metrics"] |= {"forgetting_all_classes": 5.0 + level, "last_accuracy": 60.0 + level}
    screen = Console(file=io.StringIO(), width=width, force_terminal=True, record=True)
    screen.print(results_table(runs))
    styled = screen.export_text(styles=True, clear=False)
    text = " ".join(screen.export_text().split())
    bold = re.findall(r"\x1b\[1m *(-?\d+\.\d)\x1b", styled)
    assert {"62.0", "5.0"} < set(bold) and not {"60.0", "61.0", "6.0", "7.0"} & set(bold)
    assert bold.count("41.0") == (0 if width == 60 else 3)  # all are equally good
    gone = text.partition("left out, in result.json: ")[2]
    order = ["mean over probes", "learning accuracy", "joint accuracy", "retention"]
    expected = {60: 4, 80: 2, 100: 0, 120: 0}[width]
    assert gone.startswith(", ".join(order[:expected])) and bool(gone) == bool(expected)
    for header in ("average", "last", "accuracy", "strategy", "forgetting", "classes)"):
        assert header in text.split()


def test_more_probes_than_fit_are_named_and_all_in_the_csv() -> None:
    probes = tuple(f"probe-{n}" for n in range(10))
    one = outcome("transfer", probes=probes)
    one["merge"] = {"compared": {"host": outcome("transfer", seed=1, probes=probes)}}
    table = results_table([one])
    headers = [str(column.header) for column in table.columns]
    assert headers[3:] == [*(f"probe-{n}" for n in range(6)), "retention"]
    assert cells(table, 1)[0] == "  host"
    assert cells(table, 1)[3] == "71.0"
    text = rendered(table)
    assert "probe-6, probe-7, probe-8, probe-9, trainable parameters" in " ".join(text.split())
    rows = list(csv.DictReader(io.StringIO(comparison_csv([one], ["folder"]))))
    assert [row["strategy"] for row in rows] == ["clipfit", "clipfit / host"]
    assert [float(row["probe: probe-9"]) for row in rows] == [79.0, 80.0]
    assert float(rows[0]["probe_accuracy"]) == 74.5


def test_names_of_metrics_are_no_formulas_in_a_spreadsheet() -> None:
    one = outcome(None)
    one["metrics"]['=HYPERLINK("http://x")'] = 1.0
    header, *_ = csv.reader(io.StringIO(comparison_csv([one], ["folder"])))
    assert header[-2] == """'=HYPERLINK("http://x")"""
    mode = {"mode": "@x", "metrics": one["metrics"]}
    header, cells_of_mode = csv.reader(io.StringIO(modes_csv([mode])))
    assert header[-2] == """'=HYPERLINK("http://x")"""
    assert cells_of_mode[0] == "'@x"


def test_a_line_that_is_said_is_one_line() -> None:
    text = io.StringIO()
    console = Console(file=text, width=40)
    display = ConsoleDisplay(console)
    for tell in (display.note, display.warn, lambda line: say(console, line)):
        tell("x\nverified:\tall\r\x1b[2J\u2028 is well")
    lines = text.getvalue().split("\n")
    assert len(lines) == 4 and all(line.isprintable() for line in lines)
    assert all("x verified: all" in line for line in lines[:3])
    assert "\nverified" not in rendered(results_table([outcome(None, "x\nverified: all")]))


def test_few_probes_leave_room_for_costs() -> None:
    table = results_table([outcome("transfer", probes=("letters", "[bold]"))])
    assert cells(table)[3:] == ["70.0", "71.0", "-9.5", "149,620,737", "2.0"]
    assert "[bold]" in rendered(table)
    assert "1 task," in rendered(table)


def test_results_of_an_earlier_version_stand_beside_new_ones() -> None:
    """They have fewer metrics, and no protocol."""
    old, new = outcome(None), outcome("class-incremental", "full")
    old["metrics"] = {key: old["metrics"][key] for key in COLUMNS}
    rows = list(csv.DictReader(io.StringIO(comparison_csv([old, new], ["a", "b"]))))
    assert rows[0]["mtil_last"] == ""
    assert float(rows[1]["mtil_last"]) == pytest.approx(new["metrics"]["mtil_last"], abs=1e-4)
    assert rows[0]["scenario"] == "tiny[1]"
    assert "tiny[1]: 3 tasks, 8 classes" in rendered(results_table([old, new]))


def test_a_download_is_followed_on_a_terminal_and_elsewhere() -> None:
    for terminal in (True, False):
        text = io.StringIO()
        display = ConsoleDisplay(Console(file=text, force_terminal=terminal, width=100))
        for total in (4_000_000, None):
            for done in (1_000_000, 4_000_000):
                display.transfer("data.tar.gz", done, total)
            display.stop()
        assert "data.tar.gz" in text.getvalue()
    assert "data.tar.gz: 4 of 4 MB" in text.getvalue()
    silent = io.StringIO()
    ConsoleDisplay(Console(file=silent), quiet=True).transfer("data", 1, 2)
    assert silent.getvalue() == ""


def test_protocols_of_one_task_show_their_columns(drawn: list[Figure]) -> None:
    runs = []
    for label, seed, level in (("zero-shot", 0, 50.0), ("full", 0, 60.0), ("full", 1, 80.0)):
        run = result(label, seed)
        metrics = {"base": level, "novel": level - 9, "harmonic_mean": level - 5, "retention": 1.0}
        curves = {key: [None, 1.0] for key in ("accuracy", "forgetting", "retention", "zero_shot")}
        runs.append(run | {"protocol": "base-to-novel", "metrics": metrics, "curves": curves})
    figures.plot_comparison(runs, Path("x"))
    (figure,) = drawn
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [
        "base", "novel", "harmonic\nmean",
    ]  # fmt: skip
    assert names(figure) == ["zero-shot", "full"]
    points = [list(container.lines[0].get_ydata()) for container in axes.containers]
    assert points == [[50, 41, 45], [70, 61, 65]]
    spread = axes.containers[1].lines[2][0].get_segments()[0]
    half = confidence_interval([60.0, 80.0])
    assert [float(end[1]) for end in spread] == pytest.approx([70 - half, 70 + half])
    assert axes.get_ylim() == (36, 85)


@pytest.mark.parametrize("value", [72.3, 0.1, 100 / 3, 87.65432109876543, 0.0, 1e-300])
@pytest.mark.parametrize("seeds", [2, 3, 7, 10])
def test_equal_values_have_no_spread(drawn: list[Figure], value: float, seeds: int) -> None:
    """The mean of three times 72.3, as NumPy rounds it, is larger than 72.3."""
    assert confidence_interval([value] * seeds) == 0.0
    curves = {key: [None, 1.0] for key in ("accuracy", "forgetting", "retention", "zero_shot")}
    runs = [result("full", seed) for seed in range(seeds)]
    numbers = dict.fromkeys(("base", "novel", "harmonic_mean"), value)
    for run in runs:
        run |= {"protocol": "base-to-novel", "metrics": numbers, "curves": curves}
    figures.plot_comparison(runs, Path("x"))
    (bars,) = drawn[0].axes[0].containers
    assert list(bars.lines[0].get_ydata()) == [value] * 3
    assert {end for ends in bars.lines[2][0].get_segments() for _, end in ends} == {value}


def test_a_figure_that_fails_is_a_line_and_leaves_no_old_one(tmp_path: Path) -> None:
    for kind in ("png", "svg", "csv"):
        (tmp_path / f"x.{kind}").write_text("old")
    said: list[str] = []
    with drawing(tmp_path / "x", said.append):
        raise ValueError("'yerr' must not contain negative values")
    assert said == ["the figure x is missing: ValueError: 'yerr' must not contain negative values"]
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_zero_has_no_sign() -> None:
    one = outcome(None)
    one["metrics"] = dict.fromkeys(COLUMNS, -0.0) | {"retention": -0.04}
    assert cells(results_table([one]))[1:6] == ["0.0"] * 5
    assert ",0.0000,0.0000,0.0000,0.0000,-0.0400," in comparison_csv([one], ["folder"])
