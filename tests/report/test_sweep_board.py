"""The screen of a sweep, on a terminal and in a pipe."""

import io

from rich.console import Console

from cl_clipfit.report.sweep_board import SweepBoard


def shown(terminal: bool, quiet: bool = False) -> str:
    """Return what a sweep of four runs prints, one of which was finished before."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=90, color_system=None)
    with SweepBoard(console, 4, skipped=1, quiet=quiet) as board:
        board.started("digits [lda] seed 0", "GPU 1")
        board.progress("digits [lda] seed 0", "task 2/5")
        if terminal and not quiet:
            with console.capture() as now:
                console.print(board._table())
            out.write(now.get())
        board.ended("digits [lda] seed 0", "done", "average accuracy 90.0 %", 3.0)
        board.ended("broken", "failed", "no\x1b[2J memory", 0.5)
    return out.getvalue()


def test_a_pipe_gets_one_plain_line_per_run() -> None:
    assert shown(terminal=False).splitlines() == [
        "2/4 digits [lda] seed 0: average accuracy 90.0 % (3.0 s)",
        "3/4 broken: failed: no\\x1b[2J memory (0.5 s)",
    ]
    assert shown(terminal=False, quiet=True).count("\n") == 1  # the failure


def test_a_terminal_gets_a_table_and_keeps_failures() -> None:
    text = shown(terminal=True)
    assert "1/4 runs: 1 running, 0 done, 1 finished before" in text
    assert "running digits [lda] seed 0 task 2/5" in " ".join(text.split())
    assert "3/4 broken: failed" in text and "\x1b[2J memory" not in text
