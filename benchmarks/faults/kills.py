"""SIGKILL at random moments, then the same command again, until it ends by itself.

The first of a trial is SIGKILL; a restart is killed by it, or stopped by SIGTERM, or neither.
"""

import random
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.faults.job import (
    STRATEGIES,
    Bench,
    Campaign,
    Place,
    artefacts,
    left_over,
    problem,
    run_folders,
    run_job,
    start,
    wait,
)
from cl_clipfit.storage.checkpoints import Checkpoints

MOST_KILLS = 5  # of one trial; then it may end
SHARE_AGAIN = 0.5  # of restarts that are killed too
BROKEN = (-signal.SIGKILL, 128 + signal.SIGTERM, -signal.SIGTERM)  # the last before it handles it
SHARE_IN_TRAINING = 0.5  # of moments; of the job's time training takes a small part
SHARE_STOPPED = 0.5  # of these, by SIGTERM, which lets them write a checkpoint within an epoch


def kill_at_random(bench: Bench, campaign: Campaign, trials: int, draws: random.Random) -> None:
    """Kill jobs, start them again, and compare what they leave with an uninterrupted run's.

    Half of the moments are drawn uniformly over the time that an uninterrupted run takes, from its
    start to the last file it writes; half over the time of training, from the first checkpoint that
    the process writes.
    """
    for number in range(trials):
        strategy = STRATEGIES[number % len(STRATEGIES)]
        _, wanted, _ = bench.unbroken(strategy)
        with bench.place(f"kill-{number}", campaign) as place:
            for attempt in range(MOST_KILLS + 1):
                if attempt < MOST_KILLS and (attempt == 0 or draws.random() < SHARE_AGAIN):
                    code = _break(bench, campaign, place, strategy, draws, attempt == 0)
                else:
                    code = wait(start(partial(run_job, place, strategy, "--quiet"), place.log()))
                if code not in BROKEN:
                    break
            campaign.count("files_half_written_by_the_killed", left_over(place.output))
            campaign.end_trial(problem(place, code, wanted))


def _break(
    bench: Bench, campaign: Campaign, place: Place, strategy: str, draws: random.Random, first: bool
) -> int:
    """Start the job and break it; the first of a trial is killed for certain, however quick it is.

    Returns:
        the exit code of the process.
    """
    number = signal.SIGTERM if not first and draws.random() < SHARE_STOPPED else signal.SIGKILL
    ready: Callable[[], bool] | None = None
    seconds = bench.unbroken(strategy)[2]
    if draws.random() < SHARE_IN_TRAINING:
        seconds = bench.training_seconds(strategy)
        ready = partial(_more_checkpoints, place, _checkpoints(place))
    while True:
        child = start(partial(run_job, place, strategy, "--quiet"), place.log())
        code = wait(child, draws.uniform(0, seconds), number, ready)
        if code in BROKEN:
            _count(campaign, place, code)
        elif code == 0 and first:  # it was quicker than the unbroken one: once more, from nothing
            campaign.count("ended_before_the_kill")
            shutil.rmtree(place.output)
            continue
        return code


def _checkpoints(place: Place) -> set[Path]:
    return {*place.output.glob("*/checkpoints/*.safetensors")}


def _more_checkpoints(place: Place, before: set[Path]) -> bool:
    return bool(_checkpoints(place) - before)


def _count(campaign: Campaign, place: Place, code: int) -> None:
    """Count how a process ended, and what of the run was there by then."""
    killed = code == -signal.SIGKILL
    campaign.count("kills" if killed else "stops")
    names = [*artefacts(place.output)] if place.output.is_dir() else []
    campaign.count("broken_after_a_checkpoint", any("checkpoints/" in n for n in names))
    campaign.count("broken_after_the_result", any("result.json" in n for n in names))
    if not killed and any("checkpoints/" in n for n in names):
        (run,) = run_folders(place.output)
        state = Checkpoints(run, print).load()
        within = state is not None and state["at"] is not None and state["at"]["steps"] > 0
        campaign.count("stops_within_an_epoch", within)
