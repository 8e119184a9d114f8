"""PACE: any method at weights with noisy changes, and predictions that agree under the noise."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from cl_clipfit import HostedStrategy, NotNegative, Options, Workload, label_index

NAME = "pace"
GROUP = "consistency"
PAPER = "Ni et al. 2024, arXiv 2409.17137 (NeurIPS); in the weight-space form of its theorems"
NEEDS = "what its host keeps"
PUBLISHED = {"host": "lora", "consistency": 1.0}

_NOISE_SEED = 3_000_003  # makes the noise independent of data order and crops


class PaceOptions(Options):
    """Settings of PACE; other settings of its label go to the host."""

    host: str = Field("lora", description="the method that is trained")
    sigma: NotNegative = Field(0.5, description="standard deviation of the noise on each change")
    consistency: NotNegative = Field(
        1.0, description="lambda, on cosine similarities instead of logits"
    )


class Pace(HostedStrategy):
    """L_host(w') + lambda ||c(w') - c(w'')||^2, summed over classes, mean over images.

    w' = w0 + z * (w - w0) and w'' have two draws of z ~ N(1, sigma^2) per weight and step, w0 is
    pretrained, and c are cosine similarities. CLIP multiplies these by 100: the same penalty on
    logits would be 10,000 times as large. The published noise is on the output of adapters, one
    draw per image and channel, and smaller in early layers; that on weights needs no adapter, and
    one draw serves the batch. No noise is left in evaluation.
    """

    options_class = PaceOptions
    host_is = "trained with noise"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.noise_draws = torch.Generator(self.device)
        self.noise_draws.manual_seed((self.seeds.data + _NOISE_SEED) % 2**63)
        self._other: Tensor | None = None  # similarities at w'', while a step's passes run
        self._similarities: Tensor | None = None  # at w'

    def _noise(self) -> dict[str, Tensor]:
        """Draw z for every selected weight."""
        draws, sigma = self.noise_draws, self.merge.sigma
        return {
            name: 1 + sigma * torch.randn(p.shape, generator=draws, device=p.device)
            for name, p in self.selection.items()
        }

    def _noisy(self, noise: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return w0 + z * (w - w0)."""
        start = self.model.pretrained_values
        return {
            name: start[name] + noise[name] * (p.detach() - start[name])
            for name, p in self.selection.items()
        }

    def _cosines(self, logits: Tensor) -> Tensor:
        """Return the similarities (B, C) to the classes that the loss ranks."""
        ranked = label_index(self.label_space(), logits.device)
        return logits.index_select(1, ranked) / self.model.logit_scale

    @contextlib.contextmanager
    def step_weights(self) -> Iterator[None]:
        """Run the passes of a step at w'."""
        self._noises = self._noise(), self._noise()
        first, self._second = (self._noisy(noise) for noise in self._noises)
        with torch.no_grad(), self.model.weights(self._second):
            self._other = self._cosines(self.training_logits(self.mb_x))
        try:
            with super().step_weights(), self.model.weights(first):
                yield
        finally:
            self._other = self._similarities = None
            self._noises, self._second = ({}, {}), {}

    def _penalty(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the weighted squared distance of similarities (B, C)."""
        distance: Tensor = self.merge.consistency * (one - other).square().sum(1).mean()
        return distance

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Add the penalty, with the gradient that goes through w'."""
        loss = super().compute_loss(logits, labels)
        if self._other is None:  # asked for outside of a step
            return loss
        similarities = self._cosines(logits)
        self._similarities = similarities.detach()
        return loss + self.term("consistency", self._penalty(similarities, self._other))

    def add_gradients(self) -> None:
        """Pass gradients through w' on to w, and add those of the penalty through w''."""
        super().add_gradients()
        parameters = list(self.selection.values())
        assert self._similarities is not None
        with self.model.weights(self._second):
            similarities = self._cosines(self.training_logits(self.mb_x))
            penalty = self._penalty(similarities, self._similarities)
            gradients = torch.autograd.grad(penalty, parameters, allow_unused=True)
        for (name, p), gradient in zip(self.selection.items(), gradients, strict=True):
            if p.grad is not None:
                p.grad.mul_(self._noises[0][name])
            if gradient is not None:
                added = self._noises[1][name] * gradient
                p.grad = added if p.grad is None else p.grad + added

    def workload(self) -> Workload:
        """Add the passes at w'', one of them without gradients."""
        work = super().workload()
        return replace(work, passes=work.passes * 7 / 3)
