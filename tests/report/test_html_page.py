"""The HTML report of runs: what it shows, from `result.json` and kept predictions alone."""

import html
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cl_clipfit import Results, load_results
from cl_clipfit.cli.app import main
from cl_clipfit.errors import UserError
from tests.support.results import save_run, whole_result

SECTIONS = ("curves", "matrices", "classes", "examples", "layers", "costs", "repeat", "definitions")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two methods and zero-shot CLIP, two seeds each."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        save_run(folder, whole_result("clipfit", seed))
        save_run(folder, whole_result("full:ce_scope=task", seed, level=70.0))
        save_run(folder, whole_result("zero-shot", seed, level=60.0))
    return folder


@pytest.fixture(scope="module")
def page(runs: Path) -> str:
    return load_results(runs).write_report(runs / "page.html").read_text(encoding="utf-8")


def words(page: str) -> str:
    """Return the text of a page on one line."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_it_is_one_file_that_asks_for_nothing(page: str) -> None:
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert "default-src 'none'" in page
    assert "@import" not in page and "url(" not in page
    assert len(page) < 300_000


def test_every_part_is_there_and_ids_are_unique(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert {f"{name}-1" for name in SECTIONS} <= set(ids)
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_the_table_and_the_curves_have_every_method_and_its_interval(page: str) -> None:
    text = words(page)
    for label in ("clipfit", "full:ce_scope=task", "zero-shot"):
        assert f"{label}, after task 2: " in text  # under the pointer
    # Of 70 and 71: half of 1 times Student's t of one degree of freedom.
    assert "clipfit, after task 3: 70.5 ± 6.4 %" in text
    assert "mean of 2 seeds" in text


def test_differences_are_paired_and_need_two_runs(page: str, tmp_path: Path) -> None:
    # Both metrics of the two runs differ by 10 points, whatever the seed.
    assert "Differences from clipfit strategy pairs average accuracy p last accuracy p" in words(
        page
    )
    assert "full:ce_scope=task 2 -10.0 ± 0.0 0.000 -10.0 ± 0.0 0.000" in words(page)
    for label in ("clipfit", "full"):
        save_run(tmp_path, whole_result(label), predictions=False)
    once = load_results(tmp_path).write_report(tmp_path).read_text(encoding="utf-8")
    assert "Differences from" not in once


def test_a_method_has_one_colour(page: str) -> None:
    (legend,) = set(
        re.findall(
            r'<path d="M1 6H33"[^>]*stroke="([^"]+)"[^>]*/><circle[^>]*/></svg> clipfit', page
        )
    )
    dots = re.findall(r'background:([^"]+)"></span>clipfit<', page)
    assert {legend, *dots} == {"var(--c0)"}


def test_classes_confusion_and_examples_follow_from_the_predictions(page: str) -> None:
    text = words(page)
    # Half of the 4 images of class "fox" are its task's first and, later, none other: 3 of 4.
    assert re.search(r"fox \(task 2\) 0 75 75 75", text)
    row = re.search(r"image of task / taken for task 1 2 3 1 100 0 0 2 (\d+) (\d+)", text)
    assert row is not None and row.groups() == ("25", "75")  # 2 of 8 are taken for task 1
    assert "before ✗ cat 75 % after its task ✓ <b>& 75 % at the end ✗ dog 75 %" in text


def test_names_are_shown_and_not_read_as_markup(page: str) -> None:
    assert "<b>&" not in page
    assert "&lt;b&gt;&amp;" in page


def test_it_says_how_to_repeat_each_run_and_what_it_keeps(page: str) -> None:
    text = words(page)
    assert "run.py --scenario tiny --strategy clipfit --seed 0 --deterministic" in text
    assert "python 3.11.7" in text and "cl_clipfit 0.2.0" in text
    assert "sums of features 2.0 kB" in text
    assert "A T accuracy on all classes after the last task" in text


def test_one_word_names_what_a_run_keeps_of_each_image(page: str) -> None:
    assert "predictions before training" in words(page)
    assert "answer" not in page


def test_every_picture_and_chart_has_words(page: str) -> None:
    assert all(re.search(r'alt="[^"]+"', tag) for tag in re.findall(r"<img [^>]*>", page))
    charts = re.findall(r'<div class="chart" role="img" aria-label="([^"]*)"', page)
    assert len(charts) >= 5
    assert all("ends at" in chart for chart in charts)
    scrolled = re.findall(r'<div class="scroll"([^>]*)>', page)
    assert all('tabindex="0"' in tag and "aria-label" in tag for tag in scrolled)


def test_the_same_runs_give_the_same_bytes(runs: Path, page: str) -> None:
    again = load_results(runs).write_report(runs / "again.html")
    assert again.read_text(encoding="utf-8") == page


def test_without_predictions_it_says_so(tmp_path: Path) -> None:
    save_run(tmp_path, whole_result("clipfit"), predictions=False)
    file = load_results(tmp_path).write_report(tmp_path)
    assert file == tmp_path / "report.html"
    text = words(file.read_text(encoding="utf-8"))
    assert "Some runs kept no predictions" in text
    assert "kept pictures of test images" in text
    assert "What moved" in text


def test_damaged_predictions_and_pictures_are_named_and_left_out(tmp_path: Path) -> None:
    run = save_run(tmp_path, whole_result("clipfit"))
    (run / "predictions" / "row-001.npz").write_bytes(b"junk")
    other = save_run(tmp_path, whole_result("lda"))
    next(iter((other / "thumbnails").glob("*.png"))).write_bytes(b"junk")
    text = words(load_results(tmp_path).write_report(tmp_path).read_text(encoding="utf-8"))
    assert "row-001.npz is not what a run writes" in text
    assert "its thumbnails cannot be read" in text
    assert "lda" in text


def test_unlike_protocols_have_a_part_each(tmp_path: Path) -> None:
    save_run(tmp_path, whole_result("clipfit"), predictions=False)
    save_run(tmp_path, whole_result("lda", data={"sha256": "ef" * 32}), predictions=False)
    page = load_results(tmp_path).write_report(tmp_path).read_text(encoding="utf-8")
    assert page.count("<article>") == 2
    assert 'id="curves-2"' in page
    together = load_results(tmp_path).write_report(tmp_path, mixed=True)
    assert together.read_text(encoding="utf-8").count("<article>") == 1


def test_the_command_names_its_file(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "report.html").unlink(missing_ok=True)
    assert main(["report", str(runs)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {runs}/report.html"
    assert "<article>" in (runs / "report.html").read_text(encoding="utf-8")


def test_what_the_command_refuses(refused: Callable[..., str], tmp_path: Path, runs: Path) -> None:
    assert "no finished run" in refused("report", tmp_path)
    assert "ends with .html" in refused("report", runs, "--output", tmp_path / "page")
    (tmp_path / "file").touch()
    assert "not a folder" in refused("report", runs, "--output", tmp_path / "file" / "a.html")
    save_run(tmp_path, whole_result("odd", environment="none"), predictions=False)
    assert "these results cannot be shown" in refused("report", tmp_path)


def test_nothing_to_report_is_an_error() -> None:
    with pytest.raises(UserError, match="no run to report"):
        Results().write_report("report.html")
