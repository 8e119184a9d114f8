"""The states of all random number generators: seeded, saved, restored."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn


class Draws:
    """States of all generators that a step may draw from, for a repeated step to draw the same.

    They are the global ones of Python, NumPy and PyTorch, and the `torch.Generator`s among the
    attributes of an object, or among those of an attribute, such as `TextDistillation`.

    Args:
        owner: the strategy.
        device: where it computes.
    """

    def __init__(self, owner: object, device: torch.device) -> None:
        self._own = [(g, g.get_state()) for g in generators(owner).values()]
        self._python, self._numpy = random.getstate(), np.random.get_state()
        self._torch, self._device = torch.get_rng_state(), device
        # The state lies on the host: to read it waits for nothing.
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        """Put every generator back to where it was."""
        for generator, state in self._own:
            generator.set_state(state)
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)


def generators(owner: object) -> dict[str, torch.Generator]:
    """Return the generators among the attributes of an object, or of an attribute, by name."""
    found: dict[str, torch.Generator] = {}
    for name, value in vars(owner).items():
        within = {} if isinstance(value, nn.Module) else getattr(value, "__dict__", {})
        for path, one in {name: value, **{f"{name}.{n}": v for n, v in within.items()}}.items():
            if isinstance(one, torch.Generator) and not any(one is g for g in found.values()):
                found[path] = one
    return found


def draws_of(strategy: Any) -> dict[str, Any]:
    """Return the states of all generators that training draws from."""
    name, keys, *rest = np.random.get_state(legacy=True)
    found = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "own": {path: g.get_state() for path, g in generators(strategy).items()},
    }
    if strategy.device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(strategy.device)
    return found


def set_draws(strategy: Any, draws: Mapping[str, Any]) -> None:
    """Put back the states that `draws_of` returned."""
    random.setstate(draws["python"])
    name, keys, *rest = draws["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(draws["torch"])
    known = generators(strategy)
    for path, state in draws["own"].items():
        if path in known:
            known[path].set_state(state)
    if "cuda" in draws:
        torch.cuda.set_rng_state(draws["cuda"], strategy.device)


def seed_everything(seed: int) -> None:
    """Seed every generator a method or plug-in may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
