"""Where does connectivity bring something? MERGETUNE against interpolation at its own distance.

    python -m benchmarks.connectivity --hosts clipfit full,lr=1e-3,epochs=20 --seeds 1 2 3 --json

Every host is continued with and without the line and the pulls, on a stream whose class order has
the seed of the run, and scored on held-out training images. Three solutions need no second stage:
the host, and the points of the lines from zero-shot (WiSE-FT) and from the previous task to the
host that are as far along as the merged weights.
"""

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from benchmarks import timing
from cl_clipfit import RunConfig
from cl_clipfit.evaluation.frozen_features import FrozenImages
from cl_clipfit.evaluation.scoreboard import Scoreboard
from cl_clipfit.evaluation.scoring import Scorer
from cl_clipfit.experiment.build import build_strategy, select_first
from cl_clipfit.experiment.prepare import Prepared, prepare
from cl_clipfit.experiment.run_plan import RunPlan
from cl_clipfit.merging import interpolate
from cl_clipfit.methods.continued import ContinuedStrategy
from cl_clipfit.runtime.progress import Progress

HOSTS = (
    "clipfit", "linear-head", "coop", "full,lr=1e-4,epochs=5", "full,lr=1e-4,epochs=20",
    "full,lr=1e-3,epochs=5", "full,lr=1e-3,epochs=20",
)  # fmt: skip
VARIANTS = {
    "mergetune": "", "beta=0": "beta=0", "anchor=zero-shot": "anchor=zero-shot",
    "anchor=previous": "anchor=previous", "no anchor": "lambda_zero_shot=0,lambda_previous=0",
    "no anchor, beta=0": "lambda_zero_shot=0,lambda_previous=0,beta=0",
}  # fmt: skip
METRICS = ("average_accuracy", "last_accuracy")


def solutions(strategy: ContinuedStrategy) -> dict[str, Mapping[str, Tensor]]:
    """Return the weights to score after a task; those of MERGETUNE are the current ones."""
    stage, compared = strategy.last_stage, strategy.compared()
    assert stage is not None
    ratio = strategy.records[-1]["ratio_to_previous"]
    at = interpolate(stage.previous, stage.host, 1.0 if ratio is None else ratio)
    wise = compared["wise-ft at the same distance"]
    return {"merged": {}, "host": stage.host, "wise-ft": wise, "previous-host": at}


def scores(prepared: Prepared, plan: RunPlan, encoder: FrozenImages) -> dict[str, Any]:
    """Train a run and return its metrics, by solution; `ratio` is the distance from zero-shot."""
    whole = scenario = prepared.scenario(plan.seed)
    if "image" not in plan.cls.towers:
        scenario, _ = encoder.encode(whole, {}, plan.reads_train_images_as_they_are)
    strategy = build_strategy(
        plan, prepared.stream.compute, prepared.model, whole.class_names, whole.templates
    )
    assert isinstance(strategy, ContinuedStrategy)
    select_first(plan, strategy, whole.brought[0])
    scorer = Scorer(strategy, scenario, {}, prepared.model, encoder)
    before = scorer.before_training(strategy.model.pretrained_values)
    boards: dict[str, Scoreboard] = {}
    for experience in scenario.benchmark.train_stream:
        strategy.train(experience, eval_streams=[])
        for name, scored in scorer.score(solutions(strategy)):
            if name not in boards:
                boards[name] = Scoreboard(scenario)
                boards[name].add(before)
            boards[name].add(scored)
    found: dict[str, Any] = {n: board.summary()["metrics"] for n, board in boards.items()}
    ratio = statistics.mean(r["ratio_to_zero_shot"] or 0.0 for r in strategy.records)
    return {"ratio": ratio, **{n: {m: v[m] for m in METRICS} for n, v in found.items()}}


def labels(hosts: Sequence[str], variants: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return the strategies to run: label to host and variant."""
    return {
        ",".join(filter(None, (f"mergetune:host={host}", "landscape=off", VARIANTS[name]))): (
            host, name,
        )
        for host in hosts for name in variants
    }  # fmt: skip


def compare(
    hosts: Sequence[str] = HOSTS, variants: Sequence[str] = tuple(VARIANTS),
    seeds: Sequence[int] = (1, 2, 3), **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    """Run every host with every variant and seed.

    Args:
        hosts: with settings, as in "full,lr=1e-3"; settings of MERGETUNE may be among them.
        variants: of `VARIANTS`.
        seeds: of the runs and of their class orders.
        **settings: of `RunConfig`; default split-digits, 0.4 of the training images held out.

    Returns:
        by host and variant: for every solution the percentages by metric, a list with one number
        per seed; `differences`, of the merged weights from each other solution and from the merged
        weights of the other variants: mean and half the width of the 95 % interval.
    """
    runs = labels(hosts, variants)
    table: dict[str, dict[str, dict[str, Any]]] = {host: {} for host in hosts}
    for seed in seeds:
        config = RunConfig(
            strategy=list(runs), seed=[seed], class_order=f"seed:{seed}", probe=[],
            **{"validation": 0.4, **settings},
        )  # fmt: skip
        prepared = prepare(config, Progress())
        encoder = FrozenImages(prepared.model, prepared.stream.compute.device, Progress())
        for plan in prepared.plans:
            host, variant = runs[plan.label]
            _append(table[host].setdefault(variant, {}), scores(prepared, plan, encoder))
    return {
        host: {"scores": rows, "differences": differences(rows)} for host, rows in table.items()
    }


def _append(lists: dict[str, Any], one: Mapping[str, Any]) -> None:
    """Append every number of a nested dict to the list at the same place."""
    for name, value in one.items():
        if isinstance(value, Mapping):
            _append(lists.setdefault(name, {}), value)
        else:
            lists.setdefault(name, []).append(value)


def differences(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Return the merged weights of the first variant minus every other solution, paired by seed."""
    first, *others = rows
    found = {name: rows[first][name] for name in rows[first] if name not in ("merged", "ratio")}
    found |= {name: rows[name]["merged"] for name in others}
    return {
        name: {m: interval(rows[first]["merged"][m], other[m]) for m in METRICS}
        for name, other in found.items()
    }


def interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and 95 % half-width (Student's t) of paired differences; None for one pair."""
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    if len(gaps) < 2:
        return gaps[0], None
    from scipy.stats import t

    width = t.ppf(0.975, len(gaps) - 1) * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return statistics.mean(gaps), float(width)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the scores and their differences."""
    parser = argparse.ArgumentParser(prog="benchmarks.connectivity", description=__doc__)
    parser.add_argument("--hosts", nargs="+", default=list(HOSTS), help="with settings")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--scenario", default="split-digits")
    parser.add_argument("--tasks", type=int, help="default the scenario's")
    parser.add_argument("--limit", type=int, help="at most this many images per class")
    timing.add_options(parser)
    given = timing.parse(parser, arguments)
    settings = {n: getattr(given, n) for n in ("scenario", "tasks", "limit")}
    settings = {name: value for name, value in settings.items() if value is not None}
    with timing.one_line(parser):
        report = compare(given.hosts, given.variants, given.seeds, **settings)
    timing.show({"hosts": report, "machine": timing.machine()}, given.json)


if __name__ == "__main__":
    main()
