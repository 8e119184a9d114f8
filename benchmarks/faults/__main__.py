"""Break runs on purpose and count what is lost: nothing, or the exit code is 1.

    python -m benchmarks.faults --trials 200 --json

Every trial is a process of its own, forked from this one, with one thread and in a temporary
folder. `docs/reliability.md` says what the campaigns do.
"""

import argparse
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import timing
from benchmarks.faults.damage import damage_files
from benchmarks.faults.inputs import feed_bad_input
from benchmarks.faults.job import Bench, Campaign
from benchmarks.faults.kills import kill_at_random
from benchmarks.faults.starts import start_together
from benchmarks.faults.writes import fail_writes
from cl_clipfit.commands import train  # noqa: F401  every trial needs it, and none imports it

Run = Callable[[Bench, Campaign, int, random.Random], None]
# What a campaign does, and its trials for one of --trials. `writes` takes --trials as it is.
CAMPAIGNS: dict[str, tuple[Run, float]] = {
    "kill": (kill_at_random, 1.0),
    "damage": (damage_files, 2.5),
    "writes": (fail_writes, 1.0),
    "input": (feed_bad_input, 25.0),
    "starts": (start_together, 0.25),
}


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is None:
        with tempfile.TemporaryDirectory(prefix="faults-") as made:
            yield Path(made).resolve()
        return
    given.mkdir(parents=True, exist_ok=True)
    yield Path(tempfile.mkdtemp(dir=given, prefix="faults-")).resolve()


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Run the campaigns, one after the other."""
    found: dict[str, Any] = {"trials": given.trials, "seed": given.seed}
    with _folder(given.folder) as folder:
        bench = Bench(folder)
        for name in given.only:
            run, factor = CAMPAIGNS[name]
            campaign, started = Campaign(), time.monotonic()
            # Seeded by name, so that a campaign alone draws what it draws among all.
            draws = random.Random(f"{given.seed} {name}")
            run(bench, campaign, max(1, round(given.trials * factor)), draws)
            campaign.seconds = time.monotonic() - started
            found[name] = campaign.as_json()
            print(f"{name}: {found[name]}", file=sys.stderr)
    return {**found, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _summary(found: dict[str, Any]) -> Iterator[str]:
    for name in CAMPAIGNS:
        if name in found:
            own = dict(found[name])
            examples = own.pop("examples")
            counted = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in own.items())
            yield f"{name}: {counted}"
            yield from (f"  {line}" for line in examples)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the options, run the campaigns, print; return 1 where anything was lost."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--trials", type=int, default=200, help="kills; the others in proportion")
    parser.add_argument("--only", nargs="+", choices=[*CAMPAIGNS], default=[*CAMPAIGNS],
                        help="campaigns")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep here what trials that lost have left")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    given = parser.parse_args(arguments)
    if given.trials < 1:
        parser.error("--trials must be 1 or more")
    torch.set_num_threads(1)  # before any other starts: a fork copies only the one that forks
    with timing.one_line(parser):
        found = measure(given)
    timing.show(found, given.json, _summary(found))
    return int(any(found[name]["losses"] for name in given.only))


if __name__ == "__main__":
    sys.exit(main())
