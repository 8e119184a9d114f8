"""Seed, save and restore the states of all random number generators."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn


def generators(owner: object) -> dict[str, torch.Generator]:
    """Return the generators among the attributes of an object, and of its attributes, by name.

    The attributes of a module are not searched; those of other objects, such as `TextDistillation`,
    are.
    """
    by_path: dict[str, torch.Generator] = {}
    for name, value in vars(owner).items():
        within = {} if isinstance(value, nn.Module) else getattr(value, "__dict__", {})
        for path, one in {name: value, **{f"{name}.{n}": v for n, v in within.items()}}.items():
            if isinstance(one, torch.Generator) and not any(one is g for g in by_path.values()):
                by_path[path] = one
    return by_path


def rng_state(owner: object, device: torch.device) -> dict[str, Any]:
    """Return the state of all generators that training uses, in a form that a checkpoint can hold.

    These are the global generators of Python, NumPy and PyTorch, and `generators(owner)`.

    Args:
        owner: the strategy.
        device: where it computes.
    """
    name, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "generators": {path: g.get_state() for path, g in generators(owner).items()},
    }
    if device.type == "cuda":  # the state is on the host: reading it does not wait for the device
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(owner: object, state: Mapping[str, Any], device: torch.device) -> None:
    """Restore the state that `rng_state` returned; generators not in it are left unchanged."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    by_path = generators(owner)
    for path, value in state["generators"].items():
        if path in by_path:
            by_path[path].set_state(value)
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_everything(seed: int) -> None:
    """Seed every global generator that a method or plug-in may use."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
