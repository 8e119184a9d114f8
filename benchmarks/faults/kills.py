"""SIGKILL at random moments, then the same command again, until it ends by itself."""

import random
import signal
from functools import partial

from benchmarks.faults.job import (
    STRATEGIES,
    Bench,
    Campaign,
    artefacts,
    left_over,
    problem,
    run_job,
    start,
    wait,
)

MOST_KILLS = 5  # of one trial; then it may end
SHARE_AGAIN = 0.5  # of restarts that are killed too


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
                code = wait(child, moment if dies else None)
                if code != -signal.SIGKILL:
                    break
                campaign.count("kills")
                names = [*artefacts(place.output)] if place.output.is_dir() else []
                campaign.count("kills_after_a_checkpoint", any("checkpoints/" in n for n in names))
                campaign.count("kills_after_the_result", any("result.json" in n for n in names))
            campaign.count("files_half_written_by_the_killed", left_over(place.output))
            campaign.end_trial(problem(place, code, wanted))
