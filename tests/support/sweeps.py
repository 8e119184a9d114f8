"""A sweep of twelve runs that need almost nothing, one of which may be interrupted."""

import os
from pathlib import Path

import numpy as np

from cl_clipfit import RunConfig, run
from cl_clipfit.report.results import Results
from cl_clipfit.storage.result import Result
from tests.support.feature_files import arrays

STRATEGIES = ("simplecil", "lda", "gda-clip", "fragile")
# No figures: to draw them takes longer than all else. The process of the tests leaves them out
# itself, and other tests there draw them.
PLUGIN = '''"""Class means; a run is interrupted in task 2, once, where a file says how."""

import os
import signal
from pathlib import Path

from cl_clipfit import StatisticsStrategy
from cl_clipfit.heads.linear import class_mean_head
from cl_clipfit.report import figures

MARKS = {marks!r}
NAME = "fragile"
if os.getpid() != {tests}:
    figures.plot_run = figures.plot_changes = lambda *_: None


class Fragile(StatisticsStrategy):
    """Class means."""

    def solve(self, statistics):
        mark = Path(MARKS) / f"seed-{{self.seeds.data}}"
        if len(self.seen_classes) > 3 and mark.is_file():
            victim = mark.read_text()
            mark.unlink()
            if victim == "parent":
                os.kill(os.getppid(), signal.SIGTERM)
            else:
                os.kill(os.getpid(), getattr(signal, victim))
        return class_mean_head(statistics)
'''
SWEEP = """
common: {{scenario: features, data_dir: {folder}/f.npz, tasks: 3, device: cpu, plugin: {plugin}}}
grid:
  strategy: [fragile, simplecil, lda, gda-clip]
  seed: [0, 1, 2]
"""


def write_sweep(folder: Path) -> tuple[Path, Path]:
    """Write a sweep of twelve runs; return its file and its plug-in."""
    np.savez(folder / "f.npz", **arrays())
    (folder / "marks").mkdir()
    plugin, file = folder / "fragile.py", folder / "sweep.yaml"
    plugin.write_text(PLUGIN.format(marks=str(folder / "marks"), tests=os.getpid()))
    file.write_text(SWEEP.format(folder=folder, plugin=plugin))
    return file, plugin


def interrupt(folder: Path, seed: int, victim: str) -> None:
    """Let the run `fragile` of a seed send a signal in its second task.

    Args:
        folder: of the sweep.
        seed: of the run.
        victim: "parent", which gets SIGTERM; or the signal that the run sends to itself.
    """
    (folder / "marks" / f"seed-{seed}").write_text(victim)


def run_in_this_process(folder: Path) -> Results:
    """Return the twelve runs, done one after another by the ordinary command."""
    config = RunConfig(
        scenario="features", data_dir=folder / "f.npz", tasks=3, device="cpu",
        plugin=[folder / "fragile.py"], strategy=list(STRATEGIES), seed=[0, 1, 2],
        output=folder / "one-process",
    )  # fmt: skip
    return run(config)


def bits(result: Result) -> dict[str, object]:
    """Return the tables of a run, and its bank byte for byte."""
    tables = ("accuracy_matrix", "all_classes_matrix", "task_aware_matrix", "metrics", "curves")
    banks = sorted((result.path / "bank").glob("*.safetensors"))
    assert len(banks) >= 3 or result.content["strategy"] == "zero-shot"
    return {
        **{name: result.content[name] for name in tables},
        **{file.name: file.read_bytes() for file in banks},
    }
