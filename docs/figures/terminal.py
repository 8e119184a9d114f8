"""Draw terminal.svg: the live view in the fourth task of a run of CLIPFit on split-digits.

`python docs/figures/terminal.py FOLDER` keeps the run in FOLDER.
"""

import io
import re
import sys
from pathlib import Path

from rich.console import Console

from cl_clipfit import CLIPStrategy, RunConfig, run
from cl_clipfit.report.display import ConsoleDisplay

TASK, STEP = 4, 31
FIGURE = Path(__file__).with_name("terminal.svg")


class Photographer(ConsoleDisplay):
    """Prints the lines of a run, and takes one picture of the terminal it would have."""

    def __init__(self) -> None:
        self.screen = Console(
            file=io.StringIO(), record=True, force_terminal=True, width=80, height=24,
            color_system="truecolor",
        )  # fmt: skip
        super().__init__(Console(file=io.StringIO(), width=80))
        self.screen.print("$ .venv/bin/python run.py --strategy clipfit", style="bold")

    def note(self, text: str) -> None:
        """Print a line, above the live view."""
        self.screen.print(text, highlight=False)

    def step(self, strategy: CLIPStrategy) -> None:
        """Take the picture."""
        super().step(strategy)
        if (self.view.task, self.view.step) == (TASK, STEP):
            self.view.terms = strategy.read_terms()
            self.screen.print(self.view)
            picture = self.screen.export_svg(title="cl_clipfit", unique_id="terminal")
            # A viewer has a font of its own; none is fetched.
            FIGURE.write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL))


run(RunConfig(strategy=["clipfit"], output=Path(sys.argv[1]), fresh=True), Photographer())
