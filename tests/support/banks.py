"""Shared pieces."""

from pathlib import Path

import torch
from torch import Tensor

from cl_clipfit.bank.store import DeltaBank

BASE = {"architecture": "arch", "pretrained": "tag", "weights_sha256": "ab" * 32}


def values(seed: int) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {"z.bias": torch.randn(3, generator=draws), "a.b": torch.randn(2, 2, generator=draws)}


def make(folder: Path, tasks: int = 2) -> DeltaBank:
    bank = DeltaBank.create(folder, BASE, "clipfit")
    for task in range(1, tasks + 1):
        statistics = {"labels": torch.tensor([task, 9])}
        bank.append(values(task), ["a", "é"], ["host"], values(-task), statistics)
    return bank
