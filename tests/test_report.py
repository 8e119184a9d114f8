"""Figures and the screen: what is drawn, looked at through matplotlib's own objects."""

import io
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from rich.console import Console

from cl_clipfit.report import figures
from cl_clipfit.report.display import ConsoleDisplay


def result(label: str, seed: int = 0, level: float = 80.0) -> dict[str, Any]:
    """Return as much of a result as figures read: two tasks."""
    return {
        "scenario": "tiny", "strategy": label.partition(":")[0], "label": label, "seed": seed,
        "model": {"architecture": "mini", "pretrained": "bundled"},
        "all_classes_matrix": [[50.0, 50.0], [level, 50.0], [level - 10, level]],
        "curves": {
            "accuracy": [None, level, level - 5], "forgetting": [None, None, 10.0],
            "retention": [0.0, -1.0, -2.0], "zero_shot": [None, 60.0, 50.0],
        },
        "change_by_layer": [{"clip.transformer.resblocks.0": 0.1, "clip.visual.ln_pre": 0.2}] * 2,
    }  # fmt: skip


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
    looks = {(line.get_color(), line.get_marker()) for line in drawn[0].axes[0].lines}
    assert len(looks) == len(labels)
    plt.close("all")


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
    plt.close("all")


def test_what_did_not_train_has_no_figure_of_changes(drawn: list[Figure]) -> None:
    figures.plot_changes({**result("zero-shot"), "change_by_layer": [{}, {}]}, Path("x"))
    assert drawn == []


def test_two_equal_figures_have_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        figures.plot_changes(result("full"), tmp_path / name)
    for kind in ("png", "svg"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


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
