"""Every figure of the page as SVG and PNG files of its own."""

import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cl_clipfit import load_results
from cl_clipfit.cli.app import main
from cl_clipfit.report.html.by_image import WHEN, Example, Gallery, Prediction
from cl_clipfit.report.html.charts import Point, line_chart
from cl_clipfit.report.html.figure_files import figure_svg, named_figures
from cl_clipfit.report.html.heat import Heat, data_url, heat
from cl_clipfit.report.html.parts import Figure, Protocol, protocol
from cl_clipfit.report.style import looks_of
from cl_clipfit.storage.run_folder import file_name
from tests.support.results import save_run, whole_result

LABELS = ("clipfit", "full:ce_scope=task", "zero-shot")
NAMESPACE = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three methods, of which one has lines between solutions."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        for label in LABELS:
            run = save_run(folder, whole_result(label, seed))
    line = {"alpha": [0, 0.5, 1], "loss": [2.0, 3.0, 1.0], "accuracy": [50, 40, 80], "barrier": 1.5}
    lines, counts = {"zero-shot to host": line}, {"train": 8, "test": 9}
    measured = {"task": 2, "lines": {"train": lines, "test": lines}, "images": counts,
                "classes": counts}  # fmt: skip
    (run / "landscape-task-002.json").write_text(json.dumps(measured))
    return folder


@pytest.fixture(scope="module")
def shown(runs: Path) -> Protocol:
    return protocol(load_results(runs))


@pytest.fixture(scope="module")
def figures(runs: Path) -> Path:
    load_results(runs).write_report(runs / "page.html", figures=runs / "figures")
    return runs / "figures"


def stems(folder: Path, kind: str) -> set[str]:
    return {file.stem for file in folder.glob(f"*.{kind}")}


def test_every_figure_of_the_page_is_a_file_of_both_kinds(runs: Path, figures: Path) -> None:
    page = (runs / "page.html").read_text(encoding="utf-8")
    assert all("data-name=" in tag for tag in re.findall(r"<figure\b[^>]*>", page))
    names = re.findall(r'data-name="([^"]+)"', page)
    named = {file_name(name) for name in names}
    assert len(named) == len(names) > 20
    # What looks like a chart is in a figure, and thus has a name.
    inside = "".join(re.findall(r"<figure\b.*?</figure>", page, re.DOTALL))
    for mark in ('class="chart"', 'class="cells"', 'class="dots"', 'class="ramp"'):
        assert inside.count(mark) == page.count(mark)
    assert stems(figures, "svg") == stems(figures, "png") == named
    assert len([*figures.iterdir()]) == 2 * len(named)


def test_names_say_what_is_in_a_file(figures: Path) -> None:
    assert {
        "accuracy", "forgetting", "retention", "classes", "confusion-clipfit",
        "matrix-seen-clipfit", "matrix-all-full_ce_scope=task", "matrix-task-zero-shot",
        "examples", "what-moved-image", "what-moved-text-clipfit", "landscape-loss-zero-shot-s1",
    } <= stems(figures, "svg")  # fmt: skip


def test_pictures_are_opaque_not_blank_and_nothing_is_cut(figures: Path) -> None:
    for file in sorted(figures.glob("*.png")):
        check_picture(file)


def check_picture(file: Path) -> None:
    with Image.open(file) as picture:
        assert picture.mode == "RGB", file
        pixels = np.asarray(picture)
    drawing = ET.fromstring(file.with_suffix(".svg").read_text(encoding="utf-8"))
    assert pixels.shape[:2] == (3 * int(drawing.attrib["height"]), 3 * int(drawing.attrib["width"]))
    assert (pixels != 255).any(2).mean() > 0.01, file
    rim = np.ones(pixels.shape[:2], dtype=bool)
    rim[3:-3, 3:-3] = False
    assert (pixels[rim] == 255).all(), file


def test_drawings_need_no_other_file_and_no_page(figures: Path) -> None:
    for file in sorted(figures.glob("*.svg")):
        text = file.read_text(encoding="utf-8")
        drawing = ET.fromstring(text)
        assert drawing.tag == f"{NAMESPACE}svg"
        assert drawing.findtext(f"{NAMESPACE}title") and drawing.findtext(f"{NAMESPACE}desc")
        for node in drawing.iter():
            assert node.tag.startswith(NAMESPACE), file
            links = [value for key, value in node.attrib.items() if key.endswith("href")]
            assert all(link.startswith("data:image/png") for link in links), file
        for of_a_page in ("var(", "currentColor", "url(", "<style", "<script", 'class="h'):
            assert of_a_page not in text, (file, of_a_page)


def words(drawing: str) -> list[str]:
    return [node.text or "" for node in ET.fromstring(drawing).iter(f"{NAMESPACE}text")]


def test_axes_colour_bars_and_legends_are_in_the_figure(shown: Protocol) -> None:
    named = named_figures(shown)
    for name, figure in named.items():
        text = words(figure_svg(figure))
        if isinstance(figure, Gallery):
            assert {"class", *LABELS, *WHEN, "<b>&", "task 2"} <= {*text}
        elif isinstance(figure, Heat):
            axes = [part for part in figure.corner.split(" / ") if part]
            assert {*axes, figure.unit, *figure.head} <= {*text}, name
        else:
            assert {line.label for line in figure.lines} <= {*text}, name
    assert {"accuracy (%)", "tasks learned", *LABELS} <= {*words(figure_svg(named["accuracy"]))}
    assert "image of task" in words(figure_svg(named["confusion-clipfit"]))


def test_colours_are_those_of_the_light_page(shown: Protocol) -> None:
    svg = figure_svg(named_figures(shown)["accuracy"])
    assert 'stroke="#0072B2"' in svg  # clipfit
    assert 'fill="#fff"' in svg


def test_the_same_runs_give_the_same_bytes(runs: Path, figures: Path, tmp_path: Path) -> None:
    load_results(runs).write_report(tmp_path / "page.html", figures=tmp_path)
    for file in figures.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name


def test_names_that_a_file_system_takes_for_one_are_told_apart(shown: Protocol) -> None:
    (label, (table, *_)) = shown.matrices[0]
    alike = [dataclasses.replace(table, name=name) for name in ("matrix-a:b", "matrix-A_b")]
    both = dataclasses.replace(shown, matrices=[(label, alike)])
    assert [*named_figures(both)][len(shown.curves) :][:2] == ["matrix-a_b", "matrix-A_b-2"]


def drawn(figure: Figure, folder: Path) -> Path:
    """Write a single figure as the command does; return the PNG."""
    from cl_clipfit.report.html.figure_files import _write

    return _write(figure, folder / "figure")[1]


def of_size(rows: int, columns: int, name: str = "{}", *, as_table: bool = False) -> Heat:
    values = np.linspace(0, 100, rows * columns).reshape(rows, columns)
    names = [[name.format(n + 1) for n in range(count)] for count in (rows, columns)]
    return heat("n", "t", values, *names, corner="row / column", unit="%", as_table=as_table)


@pytest.mark.parametrize("figure", [
    of_size(1, 1), of_size(6, 5), of_size(2, 24), of_size(101, 100), of_size(100, 3),
    of_size(1, 40, "layer {}"), of_size(200, 11, "a long name of a class, {}", as_table=True),
    of_size(41, 2, "{}" + "x" * 90, as_table=True), of_size(5, 4, "\u732b<&>{}"),
], ids=str)  # fmt: skip
def test_tables_of_any_size_are_whole(figure: Heat, tmp_path: Path) -> None:
    check_picture(drawn(figure, tmp_path))


@pytest.mark.parametrize("count", [1, 4, 12])
def test_a_legend_of_any_length_is_whole(count: int, tmp_path: Path) -> None:
    labels = [f"mergetune:base=clipfit,weight={'0' * 3 * n}{n}" for n in range(count)]
    points = [Point(label, at, at + n, "") for n, label in enumerate(labels) for at in (0, 1)]
    check_picture(drawn(line_chart("n", "t", points, looks_of(labels), x="x", y="y"), tmp_path))


@pytest.mark.parametrize("labels", [["clipfit"], [f"full:lr={'0' * 20}{n}" for n in range(5)]])
@pytest.mark.parametrize("count", [1, 24])
def test_examples_are_whole(labels: list[str], count: int, tmp_path: Path) -> None:
    picture = data_url(Image.new("RGB", (48, 20), "white"))
    given = [Prediction(when, "a long name " * 3, when == "before", 99.6) for when in WHEN]
    examples = [
        Example(picture, f"class {n}", n, dict.fromkeys(labels, given)) for n in range(count)
    ]
    check_picture(drawn(Gallery(examples), tmp_path))


def test_names_from_anywhere_are_text() -> None:
    name = "</text><script>\x1b\x00\ud800&amp;$"
    looks = {name: looks_of(["clipfit"])["clipfit"]}
    points = [Point(name, at, 1.0, name) for at in (0, 1)]
    chart = line_chart("n", name, points, looks, x="x", y="y")
    drawing = figure_svg(chart)
    ET.fromstring(drawing.encode())
    assert "<script" not in drawing
    table = of_size(2, 2)
    ET.fromstring(figure_svg(dataclasses.replace(table, head=[name, name], unit=name)).encode())


def test_many_classes_stand_side_by_side() -> None:
    svg = ET.fromstring(figure_svg(of_size(100, 5, "class {}", as_table=True)))
    assert int(svg.attrib["height"]) < int(svg.attrib["width"])


def test_the_command_writes_them_and_names_the_folder(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, folder = tmp_path / "page.html", tmp_path / "new" / "figures"
    assert main(["report", str(runs), "--output", str(page), "--figures", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"figures: {folder}", f"report: {page}"]
    assert (folder / "matrix-seen-clipfit.svg").exists()


def test_unlike_protocols_have_a_folder_each(tmp_path: Path) -> None:
    save_run(tmp_path, whole_result("clipfit"), predictions=False)
    save_run(tmp_path, whole_result("lda", data={"sha256": "ef" * 32}), predictions=False)
    load_results(tmp_path).write_report(tmp_path, figures=tmp_path / "figures")
    folders = sorted((tmp_path / "figures").iterdir())
    assert len(folders) == 2
    assert all(re.fullmatch(r"tiny-[0-9a-f]{4}", folder.name) for folder in folders)
    assert all((folder / "accuracy.svg").exists() for folder in folders)


def test_a_file_is_not_a_folder(refused: Callable[..., str], runs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is not a folder" in refused("report", runs, "--figures", tmp_path / "file")
