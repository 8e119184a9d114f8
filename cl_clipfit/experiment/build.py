"""Build a plan's strategy on a copy of the model, and describe errors in its code in one line."""

import copy
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cl_clipfit.clip import CLIPClassifier
from cl_clipfit.clip.prompts import TemplatesLike
from cl_clipfit.data.streams import Scenario
from cl_clipfit.errors import StrategyWarning, UserError
from cl_clipfit.experiment.run_plan import RunPlan
from cl_clipfit.experiment.stream_plan import Compute
from cl_clipfit.runtime.determinism import explain_nondeterminism
from cl_clipfit.runtime.out_of_memory import NEEDS_LESS, out_of_memory
from cl_clipfit.runtime.rng import seed_everything
from cl_clipfit.training.checks import doubt_of_loss
from cl_clipfit.training.strategy import CLIPStrategy


def build_strategy(
    plan: RunPlan,
    compute: Compute,
    model: CLIPClassifier,
    class_names: Sequence[str],
    templates: TemplatesLike,
    plugins: Sequence[Any] = (),
) -> CLIPStrategy:
    """Build a plan's strategy on a copy of the model, with all generators seeded by the plan.

    Random numbers drawn until `select_first` returns initialise new parameters. If the data order
    has a seed of its own, the generators are seeded with it afterwards. A method seeds its own
    generators from `strategy.seeds`.

    Args:
        plan: the strategy, its recipe and options.
        compute: the device, and how memory is saved.
        model: the pretrained classifier.
        class_names: names in label order.
        templates: prompt templates of the classes.
        plugins: Avalanche plugins.

    Raises:
        UserError: the method's own code fails.
    """
    # The tokenizer never changes, and copying its vocabulary takes longer than copying the model.
    model = copy.deepcopy(model, {id(model.tokenizer): model.tokenizer})
    model.micro_batch, model.recompute = compute.micro_batch, compute.recompute
    model.compiles = compute.compile
    seed_everything(plan.seeds.init)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StrategyWarning)  # a run shows them itself
            strategy: CLIPStrategy = plan.cls(
                model=model,
                class_names=class_names,
                templates=templates,
                recipe=plan.recipe,
                options=plan.options,
                device=compute.device,
                seeds=plan.seeds,
                plugins=list(plugins),
                **plan.base_options(),
            )
        strategy.shows_warnings = False
        return strategy
    except UserError:
        raise
    except Exception as error:  # a method's own code may raise anything
        raise UserError(failure(plan, error)) from error


def check_strategy(
    plan: RunPlan, compute: Compute, model: CLIPClassifier, scenario: Scenario
) -> None:
    """Find errors in a selection before other runs of the command are trained.

    Args:
        plan: the run.
        compute: the device, and how memory is saved.
        model: the pretrained classifier; it is copied.
        scenario: the stream; only the class names of its first task are encoded.

    Raises:
        UserError: the strategy cannot be built, or it selects no parameters.
    """
    names = scenario.class_names[: len(scenario.task_classes[0])]
    strategy = build_strategy(plan, compute, model, names, scenario.templates)
    select_first(plan, strategy, scenario.brought[0])


def select_first(plan: RunPlan, strategy: CLIPStrategy, classes: Sequence[int]) -> None:
    """Select the trainable parameters of the first task, and seed what is drawn afterwards.

    A first task that would teach nothing is warned of here, before anything trains.

    Args:
        plan: the run.
        strategy: its strategy.
        classes: labels of the first task.

    Raises:
        UserError: the selection fails.
    """
    if plan.recipe is not None:
        strategy.task_classes, strategy.seen_classes = list(classes), list(classes)
        try:
            strategy.select()
            if strategy.reach != "stream":  # whose classes are more than these
                strategy.warn(doubt_of_loss(strategy.label_space(), strategy.options))
            if plan.repeats_images:
                strategy.zero_shot_point()
        except UserError:
            raise
        except Exception as error:
            raise UserError(failure(plan, error)) from error
        strategy.task_classes, strategy.seen_classes = [], []
    if plan.seeds.data != plan.seeds.init:  # with one seed, the RNG state just continues
        seed_everything(plan.seeds.data)


def failure(plan: RunPlan, error: Exception, task: int = 0) -> str:
    """Return one line: what failed, and where in the method's file; task 0 is before the first."""
    name = plan.strategy.name
    files = [p.strategy.file.resolve() for p in (plan, *plan.bases)]
    frames = traceback.extract_tb(error.__traceback__)
    inside = [f for f in frames if Path(f.filename).resolve() in files]
    where = f" ({Path(inside[-1].filename).name}, line {inside[-1].lineno})" if inside else ""
    when = f"in task {task}" if task else "before the first task"
    if out_of_memory(error):
        return f"strategy {name} failed {when}{where}: out of memory: {NEEDS_LESS}"
    if text := explain_nondeterminism(error):
        return f"strategy {name} failed {when}{where}: {text}"
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return f"strategy {name} failed {when}{where}: {kind}{error}"
