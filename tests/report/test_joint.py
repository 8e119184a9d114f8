"""Joint accuracy and joint retention in tables and figures: where runs have them."""

import io
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from cl_clipfit.report import figures
from cl_clipfit.report.columns import COLUMNS
from cl_clipfit.report.tables import results_table
from tests.support import results
from tests.support.tiny import PLOT_COMPARISON, PLOT_RUN

TITLE = "joint retention (points)"
JOINT = {"joint_accuracy": 51.7, "joint_retention": -4.0}


def scored(label: str, joint: bool, protocol: str = "class-incremental") -> dict[str, Any]:
    """Return as much of a result as tables and figures read."""
    curves = {"joint_accuracy": [None, 60.0, 50.0], "joint_retention": [0.0, -2.5, -4.0]}
    result = results.result(label)
    return result | {
        "curves": {**result["curves"], **(curves if joint else {})},
        "metrics": dict.fromkeys(COLUMNS, 78.4) | (JOINT if joint else {}),
        "protocol": protocol, "scored_on": "test images", "tasks": [{}] * 2, "probes": {},
        "class_order": [0, 1], "timings": {}, "merge": None,
        "model": {**result["model"], "trainable_parameters": 2752},
    }  # fmt: skip


def rendered(*of: dict[str, Any]) -> str:
    text = io.StringIO()
    Console(file=text, width=80).print(results_table(of))
    return text.getvalue()


@pytest.mark.parametrize("protocol", ["class-incremental", "mtil", "base-to-novel", "transfer"])
def test_the_columns_are_shown_where_a_run_has_them(protocol: str) -> None:
    text = rendered(scored("clipfit", True, protocol), scored("full", False, protocol))
    assert text.split().count("51.7") == text.split().count("-4.0") == 1
    assert "joint" not in rendered(scored("full", False, protocol))


def test_what_methods_keep_is_named_with_its_size() -> None:
    kept = {
        "lda": ("sums", [10, 33_000]), "gda-clip": ("sums", [0, 500]),
        "stack": ("more", [8_000_000, 8_200_000]), "full": ("none", [0, 0]),
    }  # fmt: skip
    runs = [scored(n, True) | {"kept": {"what": w, "bytes": b}} for n, (w, b) in kept.items()]
    shown = " ".join(rendered(*runs).split())
    expected = "lda 33.0 kB, gda-clip 500 bytes (sums); stack 8.2 MB (more); others nothing"
    assert f"kept from old tasks: {expected}" in shown
    assert "others" not in rendered(*runs[:3])
    assert "kept from old tasks: nothing" in rendered(runs[3])
    assert "kept" not in rendered(scored("full", True), scored("lda", True) | {"kept": None})


def test_exemplars_are_named_with_every_result() -> None:
    kept = {"what": "", "bytes": [0, 0]}
    runs = [
        scored(name, True) | {"kept": {**kept, "exemplars": used}}
        for name, used in (("tip", "features"), ("replay", 200), ("full", "no"))
    ]
    assert "uses exemplars: tip features, replay 200, others no" in rendered(*runs)
    assert "uses exemplars: no" in rendered(runs[2])
    assert "exemplars" not in rendered(scored("full", True) | {"kept": kept})  # an older run


def test_eight_columns_are_readable_at_80() -> None:
    lines = rendered(scored("zero-shot", True), scored("mergetune", True)).splitlines()
    words = " ".join(lines).split()
    assert words.count("accuracy") == 4
    assert {"zero-shot", "mergetune", "forgetting", "classes)", "probes", "joint"} <= {*words}
    assert len([line for line in lines if "51.7" in line]) == 2


def test_curves_of_old_and_new_runs_are_drawn_together(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    monkeypatch.setattr(figures, "plot_run", PLOT_RUN)
    monkeypatch.setattr(figures, "plot_comparison", PLOT_COMPARISON)
    old, new = scored("full", False), scored("clipfit", True)
    figures.plot_comparison([old, new], Path("x"))
    figures.plot_run(new, Path("x"))
    figures.plot_run(old, Path("x"))
    panels = [{axes.get_title(loc="left"): axes for axes in figure.axes} for figure in drawn]
    assert [TITLE in of_figure for of_figure in panels] == [True, True, False]
    lines = {line.get_label(): line for line in panels[0][TITLE].lines}
    assert "full" not in lines
    assert [*lines["clipfit"].get_ydata()] == [0.0, -2.5, -4.0]
    for figure in drawn[:2]:  # readable at 6.5 inches, as those with fewer panels
        scale = min(1, 6.5 / figure.get_figwidth())
        assert all(axes.xaxis.label.get_fontsize() * scale >= 6 for axes in figure.axes)
