"""A byte flipped, or a file cut short: in finished runs, and in checkpoints of unfinished ones."""

import os
import random
import signal
from pathlib import Path
from typing import Any

from benchmarks.faults.job import (
    STRATEGIES,
    Bench,
    Campaign,
    Place,
    problem,
    run_folders,
    run_job,
    start,
    verified,
    wait,
)
from cl_clipfit.errors import UserError
from cl_clipfit.storage.checkpoints import Checkpoints
from cl_clipfit.storage.manifest import CHECKPOINTS

CHECKPOINTS_BEFORE_THE_END = 5  # of an unfinished run: it is in its third task
SHARE_OF_CHECKPOINTS = 25  # one trial of so many is on one


def damage_files(bench: Bench, campaign: Campaign, trials: int, draws: random.Random) -> None:
    """Damage files of finished runs, one at a time, and ask `verify`; then checkpoints."""
    of_checkpoints = max(1, trials // SHARE_OF_CHECKPOINTS)
    runs = [run for s in STRATEGIES for run in run_folders(bench.unbroken(s)[0].output)]
    for number in range(max(1, trials - of_checkpoints)):
        run = runs[number % len(runs)]
        file = draws.choice(sorted(path for path in run.rglob("*") if path.is_file()))
        data = file.read_bytes()
        what = _damage(file, data, draws)
        campaign.count(what)
        try:
            noticed = verified(run)
            campaign.end_trial("" if noticed else f"unnoticed: {file.name}, {what}")
        except Exception as error:  # the traceback that a user would see
            campaign.end_trial(f"{file.name}, {what}: verify raises {error!r:.200}")
        finally:
            file.write_bytes(data)
    for run in runs:  # a check that always fails would have noticed all of it
        if text := verified(run):
            campaign.losses.append(f"verify refuses what is whole: {text}")
    for number in range(of_checkpoints):
        _damage_checkpoint(bench, campaign, number, draws)


def _damage(file: Path, data: bytes, draws: random.Random) -> str:
    """Change a file, and say how."""
    if data and draws.random() < 0.5:
        changed = bytearray(data)
        changed[draws.randrange(len(data))] ^= draws.randrange(1, 256)
        file.write_bytes(changed)
        return "bytes_flipped"
    file.write_bytes(data[: draws.randrange(len(data))])
    return "files_cut_short"


def _damage_checkpoint(bench: Bench, campaign: Campaign, number: int, draws: random.Random) -> None:
    """Damage the newest checkpoint of an unfinished run: it is told, and the one before is used."""
    strategy = STRATEGIES[number % len(STRATEGIES)]
    _, wanted, _ = bench.unbroken(strategy)
    with bench.place(f"checkpoint-{number}", campaign) as place:
        _leave_unfinished(place, strategy)
        (run,) = run_folders(place.output)
        newest = max((run / CHECKPOINTS).glob("*.safetensors"))
        what = _damage(newest, newest.read_bytes(), draws)
        campaign.count("checkpoints_damaged")
        code = wait(start(lambda: run_job(place, strategy, "--quiet"), place.log("again")))
        text = problem(place, code, wanted, "again")
        warning = f"{newest.name} is damaged: trying the previous checkpoint"
        if not text and warning not in place.said("again"):
            text = f"{newest.name}, {what}: nothing is said"
        campaign.end_trial(text)


def _leave_unfinished(place: Place, strategy: str) -> None:
    """Run the job until it has written some checkpoints, and kill it.

    Raises:
        UserError: it ends before.
    """

    def work() -> int:
        save, calls = Checkpoints.save, [0]

        def counted(self: Checkpoints, state: dict[str, Any]) -> None:
            save(self, state)
            calls[0] += 1
            if calls[0] == CHECKPOINTS_BEFORE_THE_END:
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(Checkpoints, "save", counted)  # noqa: B010
        return run_job(place, strategy, "--quiet")

    if wait(start(work, place.log())) != -signal.SIGKILL:
        raise UserError(f"the job ends before its checkpoints: {place.said()[-300:]}")
