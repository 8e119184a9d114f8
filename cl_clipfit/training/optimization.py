"""Build the optimiser and the learning-rate schedule of a task from its recipe."""

import functools
import inspect
import math
from typing import Any, TypeVar

import torch

from cl_clipfit.config.options import Recipe

ParameterGroup = dict[str, Any]  # "params", and settings that override the optimiser's
_Kind = TypeVar("_Kind", bound=torch.optim.Optimizer)


def _without_dynamo(kind: type[_Kind]) -> type[_Kind]:
    """Return an optimiser class whose methods lack the wrappers that import TorchDynamo.

    The wrappers only matter to an optimiser that is itself compiled, and the import takes as long
    as that of PyTorch's core. Every number is the same.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), methods)


_SGD, _AdamW = _without_dynamo(torch.optim.SGD), _without_dynamo(torch.optim.AdamW)


def make_optimizer(recipe: Recipe, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
    """Return a new optimiser.

    On CUDA its step is a fused kernel, which rounds differently from PyTorch's default.

    Args:
        recipe: the type of the optimiser, its learning rate, momentum and weight decay.
        groups: parameter groups as PyTorch takes them; the "lr" of a group overrides the recipe's.
    """
    fused = all(p.is_cuda for group in groups for p in group["params"]) or None
    decay = recipe.weight_decay
    if recipe.optimizer == "sgd":
        return _SGD(groups, lr=recipe.lr, momentum=recipe.momentum, weight_decay=decay, fused=fused)
    return _AdamW(groups, lr=recipe.lr, weight_decay=decay, fused=fused)


def steps_per_epoch(recipe: Recipe, images: int) -> int:
    """Return the optimiser steps per epoch over `images` training images.

    Example:
        >>> recipe = Recipe(batch_size=32, drop_last=True)
        >>> [steps_per_epoch(recipe, images) for images in (20, 32, 40, 64)]
        [1, 1, 1, 2]
    """
    if recipe.drop_last and images >= recipe.batch_size:
        return images // recipe.batch_size
    return -(-images // recipe.batch_size)


def online_steps(recipe: Recipe, images: int, piece: int) -> int:
    """Return the steps of one pass over `images` that arrive in experiences of `piece` images.

    Example:
        >>> online_steps(Recipe(batch_size=32), images=250, piece=100)
        10
    """
    whole, rest = divmod(images, piece)
    return whole * steps_per_epoch(recipe, piece) + (steps_per_epoch(recipe, rest) if rest else 0)


def lr_factor(recipe: Recipe, step: int, epoch_steps: int) -> float:
    """Return the learning rate of a step as a multiple of the peak.

    In warm-up epochs the rate is `warmup_lr`, times the scale of a parameter group. After them,
    "cosine" decreases to 0 over the remaining steps. "epoch-cosine" changes once per epoch: in
    epoch e, counted from 0, of E epochs with W warm-up epochs, it is
    (1 + cos(pi (e - W) / E)) / 2, the schedule of CLIPFit's released code (Dassl).

    Args:
        recipe: the schedule.
        step: optimiser steps of the task already taken.
        epoch_steps: steps per epoch.

    Example:
        >>> recipe = Recipe(epochs=4, schedule="epoch-cosine", warmup_epochs=1, lr=1e-3)
        >>> [round(lr_factor(recipe, step, 10), 3) for step in (0, 9, 10, 19, 20, 39)]
        [0.01, 0.01, 1.0, 1.0, 0.854, 0.5]
    """
    epoch = step // epoch_steps
    if epoch < recipe.warmup_epochs:
        return recipe.warmup_lr / recipe.lr
    if recipe.schedule == "constant":
        return 1.0
    if recipe.schedule == "epoch-cosine":
        done = (epoch - recipe.warmup_epochs) / recipe.epochs
    else:
        warm = recipe.warmup_epochs * epoch_steps
        done = min(1.0, (step - warm) / max(1, recipe.epochs * epoch_steps - warm))
    return (1 + math.cos(math.pi * done)) / 2


def lr_share(recipe: Recipe, step: int, epoch_steps: int) -> float:
    """Return the learning rate of a step as a share of the sum over all steps of the recipe.

    Args:
        recipe: the schedule and its epochs.
        step: as in `lr_factor`.
        epoch_steps: steps per epoch.

    Example:
        >>> recipe = Recipe(epochs=2, schedule="constant")
        >>> [lr_share(recipe, step, 2) for step in range(4)]
        [0.25, 0.25, 0.25, 0.25]
    """
    return lr_factor(recipe, step, epoch_steps) / _lr_sum(recipe, epoch_steps)


@functools.lru_cache(maxsize=1)  # asked for in every step
def _lr_sum(recipe: Recipe, epoch_steps: int) -> float:
    return sum(lr_factor(recipe, step, epoch_steps) for step in range(recipe.epochs * epoch_steps))


def make_schedule(
    recipe: Recipe, optimizer: torch.optim.Optimizer, epoch_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return a schedule that multiplies the learning rate of every group; step it once per step."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(recipe, step, epoch_steps)
    )
