"""The live view of a run, on consoles that are recorded, and the plain lines elsewhere."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from cl_clipfit.report.display import ConsoleDisplay
from cl_clipfit.report.live import LiveView, clock, shade

SIZES = [(80, 24), (80, 50), (120, 40)]
TERMS = {"loss": 1.25, "cross-entropy": 1.0, "distillation": 0.25}


def console(width: int = 80, height: int = 24, **kwargs: object) -> Console:
    settings: dict = {"force_terminal": True, "color_system": "truecolor"} | kwargs
    file = io.StringIO()
    return Console(
        file=file, width=width, height=height, record=True, _environ={"TERM": "xterm"}, **settings
    )


def drawn(view: LiveView, width: int, height: int) -> list[str]:
    screen = console(width, height)
    screen.print(view)
    return screen.export_text().splitlines()


def view(tasks: int, task: int, label: str = "clipfit seed 0") -> LiveView:
    """Return the view in the middle of a task of 100 steps, of which one took a second."""
    rows = {t: [90.0 + t] * t + [None] * (tasks - t) for t in range(1, task)}
    one = LiveView(
        "split-digits", label, task, tasks, epochs=4, steps=100, step=30, own_steps=30,
        images=960, seconds=30.0, terms=TERMS, rows=rows, task_seconds=[200.0] * (task - 1),
    )  # fmt: skip
    one.now = lambda: 30.0  # type: ignore[method-assign]
    return one


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("tasks", [1, 5, 20, 100])
def test_the_view_fits_and_says_where_the_run_is(width: int, height: int, tasks: int) -> None:
    task = max(1, tasks - 2)
    lines = drawn(view(tasks, task, "mergetune:host=coop,kd_weight=2 " * 9), width, height)
    assert len(lines) < height
    assert all(len(line) <= width for line in lines)
    title, place, loss, *table = lines
    assert title.startswith("split-digits: mergetune:host=coop") and title.endswith("…")
    assert f"task {task}/{tasks} " in place
    assert "epoch 2/4 step 30/100" in place and "0:01:10 left" in place
    assert ("in all" in place) == (tasks > 1)
    assert loss.startswith("loss 1.250 = cross-entropy 1.000 + distillation 0.250  32 images/s")
    rows = [line.split() for line in table if line.startswith("after")]
    assert rows[-1][1] == str(min(tasks, max(task, height - 7)))
    if tasks == 5:
        assert rows[0] == ["after", "1", "91.0", *"····"]
        assert rows[1] == ["after", "2", "92.0", "92.0", *"···"]
        assert rows[2] == ["after", "3", *"·····"]


def test_the_table_fills_in_and_keeps_its_last_rows() -> None:
    one = view(100, 60)
    lines = [line for line in drawn(one, 80, 24) if line.startswith("after")]
    assert lines[-1].split()[:2] == ["after", "60"] and "·" in lines[-1]
    assert lines[-2].split()[2:] == ["149"] * 16 + ["·"]
    short = drawn(one, 80, 7)
    assert len(short) == 3  # no table where there is no room
    assert [line for line in drawn(view(12, 12), 80, 24) if "101" in line]
    assert not [line for line in drawn(view(12, 12), 80, 24) if "101.0" in line]


def test_time_is_not_guessed_before_the_first_step_and_scoring_is_said() -> None:
    one = view(5, 1)
    one.own_steps = one.step = 0
    one.terms = {}
    assert "-:--:-- left" in drawn(one, 80, 24)[1]
    assert "no step yet" in drawn(one, 80, 24)[2]
    one.step = one.own_steps = 100
    assert "scoring and measuring  0:00:00 left, 0:02:00 in all" in drawn(one, 80, 24)[1]
    one.steps = one.step = 0
    assert "nothing trains" in drawn(one, 80, 24)[2]
    assert (clock(59.9), clock(3600)) == ("0:00:59", "1:00:00")


def test_a_cell_is_readable_at_every_accuracy() -> None:
    for percent in (0, 20, 40, 60, 80, 100):
        style = shade(percent)
        assert style.bgcolor is not None and style.color is not None
        level = sum(style.bgcolor.get_truecolor()) / 3
        assert style.color.name == ("white" if level < 130 else "black")


def follow(screen: Console) -> tuple[ConsoleDisplay, list[str]]:
    """Follow a run of two tasks; return the display and what was on the screen in the second."""
    display, reads = ConsoleDisplay(screen), list[str]()
    display.start_run("clipfit seed 0", "split-digits")
    strategy = SimpleNamespace(
        mb_y=[0] * 8, task_steps=1, read_terms=lambda: reads.append("read") or TERMS
    )
    for task in (1, 2):
        display.start_task(task, 2, 1, 2)
        display.step(strategy)
        display.row(task, [99.0] * task + [None] * (2 - task))
        display.end_task(task, 2, 99.0, 0.5)
    seen = drawn(display.view, 80, 24)
    display.stop()
    return display, [*seen, *reads]


def test_a_terminal_has_a_live_view_and_lines_above_it() -> None:
    screen = console()
    display, seen = follow(screen)
    assert display._live is None
    assert seen[0] == "split-digits: clipfit seed 0"
    assert [line.split() for line in seen if line.startswith("after")] == [
        ["after", "1", "99.0", "·"], ["after", "2", "99.0", "99.0"],
    ]  # fmt: skip
    assert seen.count("read") == 2  # once in each task: the second step came too soon
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "task 2/2: 99.0 % over classes seen, 0.5 s, 16 images/s" in text
    assert "\x1b[?25l" in text and text.rstrip().endswith("\x1b[2K")  # the view is wiped


@pytest.mark.parametrize(
    "plain",
    [
        {"force_terminal": False},
        {"_environ": {"TERM": "dumb"}},
        {"_environ": {"TERM": "xterm", "NO_COLOR": "1"}},
    ],
)
def test_elsewhere_there_are_plain_lines(plain: dict) -> None:
    file = io.StringIO()
    screen = Console(file=file, width=80, **{"force_terminal": True, "_environ": {}, **plain})
    display, seen = follow(screen)
    assert not display.lively and "read" not in seen  # nothing waits for the device
    text = file.getvalue()
    assert "\x1b" not in text and "\r" not in text
    assert len(text.splitlines()) == 2
    display.transfer("data.tar", 10**6, 10**6)
    assert file.getvalue().splitlines()[-1] == "data.tar: 1 of 1 MB"


def test_a_count_does_not_disturb_the_view_of_a_run() -> None:
    display = ConsoleDisplay(console())
    display.count("encoding", 1, 3)
    assert display._bar is not None
    display.start_task(1, 1, 1, 1)
    display.count("encoding", 2, 3)
    assert display._bar is None
    display.stop()
