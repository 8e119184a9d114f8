"""The pieces of the HTML report: charts, coloured tables, chosen images."""

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from cl_clipfit.metrics.predictions import Predictions
from cl_clipfit.report.html.by_image import class_names
from cl_clipfit.report.html.charts import Point, line_chart
from cl_clipfit.report.html.curves import (
    barriers,
    landscape_charts,
    landscapes,
    layer_charts,
)
from cl_clipfit.report.html.heat import heat, luminance, style_sheet
from cl_clipfit.report.html.thumbnails import (
    FATES,
    chosen,
    fates,
    read_thumbnails,
    save_thumbnails,
)
from cl_clipfit.report.style import looks_of
from cl_clipfit.storage.run_folder import THUMBNAILS
from tests.support.results import whole_result


def answered(*rows: str) -> list[Predictions]:
    """Return rows of answers to images of two tasks in turn: "+" is right, "-" wrong."""
    count = len(rows[0])
    labels, tasks = np.zeros(count, np.int32), np.arange(count, dtype=np.int32) % 2
    best = [np.array([0 if mark == "+" else 1 for mark in row], np.int32) for row in rows]
    rest, scores = np.full((count, 4), -1, np.int32), np.zeros((count, 5), np.float16)
    return [Predictions(labels, np.column_stack([b, rest]), scores, tasks) for b in best]


def test_a_chart_takes_colours_from_the_page_and_names_as_text() -> None:
    looks = looks_of(["clipfit", "a</svg><script>"])
    points = [
        Point(label, task, 10.0 * task, f"{label}: {task}", half)
        for label, half in (("clipfit", 0.0), ("a</svg><script>", 1.0)) for task in (1, 2, 3)
    ]  # fmt: skip
    chart = line_chart("curve", "accuracy", points, looks, x="tasks", y="%", low=0, high=100)
    assert "<script" not in chart.svg
    assert chart.svg.count("</svg>") == 1
    assert chart.svg.count("<title>") == len(points)
    assert "<title>clipfit: 2</title>" in chart.svg
    assert 'stroke="var(--c0)"' in chart.svg
    assert " id=" not in chart.svg  # of two charts of a page they would be the same
    assert chart.head == ["tasks", "clipfit", "a</svg><script>"]
    assert [*chart.rows[1]] == ["2", "20", "20 ± 1"]
    assert "clipfit ends at 3" in chart.alt


@pytest.mark.parametrize(("half", "text"), [(141.97, "142"), (17.04, "17"), (0.9168, "0.917")])
def test_intervals_below_a_chart_have_no_exponent(half: float, text: str) -> None:
    points = [Point("full", 1, 87.063, "", half)]
    chart = line_chart("n", "t", points, looks_of(["full"]), x="x", y="y")
    assert [*chart.rows[0]] == ["1", f"87.06 ± {text}"]


def test_small_numbers_on_the_axis_and_under_the_pointer_keep_their_digits() -> None:
    points = [Point("full", at, 0.0123 + at / 1000, f"full: {0.0123 + at / 1000}") for at in (0, 1)]
    svg = line_chart("n", "t", points, looks_of(["full"]), x="x", y="y").svg
    assert "<title>full: 0.0123</title>" in svg
    ticks = re.findall(r'text-anchor="end"[^>]*>([^<]+)</text>', svg)
    assert len(ticks) == len({*ticks}) > 2
    assert not re.search(r' (?:d|transform)="[^"]*\.\d{4}', svg)  # positions are rounded


def test_numbers_below_an_axis_are_round() -> None:
    points = [Point("full", at, 1.0 * at, "") for at in range(1, 101)]
    svg = line_chart("n", "t", points, looks_of(["full"]), x="x", y="y").svg
    shown = re.findall(r'text-anchor="middle"[^>]*>([^<]+)</text>', svg)
    assert shown[:10] == [str(at) for at in range(10, 101, 10)]


def test_a_line_is_thinner_than_those_below_it() -> None:
    looks = looks_of(["clipfit", "lda", "full"])
    points = [Point(label, at, 1.0, "") for label in looks for at in (0, 1)]
    svg = line_chart("n", "t", points, looks, x="x", y="y").svg
    widths = [float(w) for w in re.findall(r'stroke-width="([\d.]+)"[^>]*stroke-dasharray', svg)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > widths[1] + 1


def test_cells_are_coloured_by_value_and_empty_ones_are_not() -> None:
    table = heat("n", "t", [[0, 50], [None, 100]], ["a", "b"], ["c", "d"], corner="x", unit="%")
    assert table.rows == [
        ("a", [("0", "h0"), ("50", "h10")]), ("b", [("", "none"), ("100", "h20")]),
    ]  # fmt: skip
    assert table.picture == ""


def test_the_text_of_every_cell_can_be_read() -> None:
    rules = re.findall(r"background:#(..)(..)(..);color:#(...)}", style_sheet())
    assert len(rules) == 21
    for *colour, text in rules:
        ground = luminance(*(int(part, 16) for part in colour))
        other = {"fff": 1.0, "000": 0.0}[text]
        assert (max(ground, other) + 0.05) / (min(ground, other) + 0.05) >= 4.5  # WCAG, AA


def test_a_large_table_is_a_picture_with_a_dot_for_each_cell() -> None:
    names = [str(n) for n in range(40)]
    table = heat("n", "t", np.full((40, 40), 30.0), names, names, corner="x", unit="%")
    assert table.rows == ()
    assert table.picture.startswith("data:image/png;base64,")
    assert "40 rows and 40 columns" in table.alt and "30" in table.alt
    assert heat(
        "n", "t", np.ones((40, 2)), names, names[:2], corner="x", unit="%", as_table=True
    ).rows


def test_what_became_of_an_answer() -> None:
    #                before, after task 1, after task 2
    rows = answered("+-+--", "+-++-", "+--++")
    assert [FATES[kind] for kind in fates(rows)] == [
        "right before and at the end", "never right", "forgotten", "learned", "learned",
    ]  # fmt: skip


def test_images_of_every_kind_and_of_both_tasks_are_chosen() -> None:
    rows = answered("-" * 40 + "+" * 40, "-" * 80, "-" * 40 + "+" * 40)
    images = chosen(rows)
    assert len(images) == 12
    assert sum(n < 40 for n in images) == 6
    assert sorted({n % 2 for n in images}) == [0, 1]
    assert chosen(rows) == images


def test_pictures_are_small_and_found_by_the_number_of_the_image(tmp_path: Path) -> None:
    rows = answered("-+-", "-+-", "+-+")
    images = torch.zeros(3, 3, 100, 50, dtype=torch.uint8)
    images[1] = 255
    save_thumbnails(images, rows, tmp_path)
    found = read_thumbnails(tmp_path)
    assert {*found} == {0, 1, 2}
    assert found[1].size == (24, 48)
    assert found[1].getpixel((0, 0)) == (255, 255, 255)
    assert all(file.stat().st_size < 2000 for file in (tmp_path / THUMBNAILS).iterdir())


@pytest.mark.parametrize("images", [torch.zeros(3, 16), torch.zeros(3, 3, 8, 8)[:0]])
def test_features_and_unkept_answers_give_no_picture(images: torch.Tensor, tmp_path: Path) -> None:
    rows = answered("+-+", "+++", "+++") if images.dim() == 2 else []
    save_thumbnails(images, rows, tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_layers_are_in_the_order_of_the_model() -> None:
    ahead = [{"clip.visual.transformer.resblocks.10": 0.1}]
    behind = [{"clip.visual.ln_pre": 0.1, "clip.visual.transformer.resblocks.2": 0.3,
               "clip.visual.ln_post": 0.1}]  # fmt: skip
    groups = {
        "full": [whole_result("full", change_by_layer=ahead)],
        "lora": [whole_result("lora", change_by_layer=behind)],
        "zero-shot": [whole_result("zero-shot")],
    }
    (chart,) = layer_charts(groups, looks_of(groups))
    assert [row[0] for row in chart.rows] == ["ln_pre", "2", "10", "ln_post"]
    assert chart.head == ["layer of the image tower (numbers are blocks)", "full", "lora"]


def test_lines_between_solutions_and_barriers(tmp_path: Path) -> None:
    line = {"alpha": [0, 0.5, 1], "loss": [2.0, 3.0, 1.0], "accuracy": [50, 40, 80], "barrier": 1.5}
    lines = {"zero-shot to host": line, "previous to host": line}
    both = {"train": 8, "test": 9}
    measured = {
        "task": 2,
        "lines": {"train": lines, "test": lines},
        "images": both,
        "classes": both,
    }
    (tmp_path / "landscape-task-002.json").write_text(json.dumps(measured))
    (tmp_path / "landscape-task-003.json").write_text("{}")
    (tmp_path / "landscape-task-004.json").write_text("not JSON")
    (found,) = landscapes(tmp_path)
    (loss, accuracy), looks = landscape_charts(found, "full-s0")
    assert [*looks] == [*lines]
    assert [row[1] for row in loss.rows] == ["2", "3", "1"]
    assert [row[2] for row in accuracy.rows] == ["50", "40", "80"]
    merge = {"tasks": [{"barriers": {"a to b": 0.25}}, {"barriers": None}], "compared": {}}
    assert barriers({"merge": merge}) == (["task", "a to b"], [["1", "0.250"], ["2", "-"]])
    assert barriers({"merge": None}) == ([], [])


def test_classes_that_come_again_are_named_once() -> None:
    again = whole_result("full", tasks=[{"classes": ["a", "b"]}] * 2, class_order=[0, 1])
    assert class_names(again) == ["a", "b"]
    assert class_names({**again, "class_order": [0, 1, 2]}) == ["class 1", "class 2", "class 3"]


def test_what_draws_pages_is_imported_when_one_is_written() -> None:
    for file in Path("cl_clipfit").rglob("*.py"):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        names = {a.name for node in body if isinstance(node, ast.Import) for a in node.names}
        names |= {str(node.module) for node in body if isinstance(node, ast.ImportFrom)}
        assert not {"jinja2", "vl_convert", "markupsafe"} & names, file
