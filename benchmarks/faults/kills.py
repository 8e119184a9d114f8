"""SIGKILL at random moments, then the same command again, until it ends by itself.

The first of a trial is SIGKILL; a restart is killed by it, or stopped by SIGTERM, or neither.
"""

import random
import signal
from functools import partial

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
from cl_clipfit.checkpoints import Checkpoints

MOST_KILLS = 5  # of one trial; then it may end
SHARE_AGAIN = 0.5  # of restarts that are killed too
BROKEN = (-signal.SIGKILL, 128 + signal.SIGTERM, -signal.SIGTERM)  # the last before it handles it
SHARE_STOPPED = 0.5  # of these, by SIGTERM, which lets them write a checkpoint within an epoch


def kill_at_random(bench: Bench, campaign: Campaign, trials: int, draws: random.Random) -> None:
    """Kill jobs, start them again, and compare what they leave with an unbroken run's.

    Moments are drawn uniformly over the time that an unbroken run takes, from its start to the last
    file it writes.
    """
    for number in range(trials):
        strategy = STRATEGIES[number % len(STRATEGIES)]
        _, wanted, seconds = bench.unbroken(strategy)
        with bench.place(f"kill-{number}", campaign) as place:
            for attempt in range(MOST_KILLS + 1):
                again = attempt == 0 or draws.random() < SHARE_AGAIN
                moment = draws.uniform(0, seconds)
                dies = again and attempt < MOST_KILLS
                child = start(partial(run_job, place, strategy, "--quiet"), place.log())
                stops = attempt > 0 and draws.random() < SHARE_STOPPED
                sent = signal.SIGTERM if stops else signal.SIGKILL
                code = wait(child, moment if dies else None, sent)
                if code not in BROKEN:
                    break
                _count(campaign, place, code)
            campaign.count("files_half_written_by_the_killed", left_over(place.output))
            campaign.end_trial(problem(place, code, wanted))


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
