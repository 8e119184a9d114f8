"""The diagonal of the Fisher information: how much the predictions depend on each parameter."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_clipfit.errors import UserError

if TYPE_CHECKING:
    from cl_clipfit.clip import CLIPClassifier
    from cl_clipfit.training.strategy import CLIPStrategy


def diagonal_fisher(
    strategy: "CLIPStrategy",
    images: Tensor,
    generator: torch.Generator,
    labels: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the mean squared gradient of the log-likelihood at the current weights.

    Labels are drawn from the model's own distribution over the strategy's label space: the true
    Fisher. With labels that are given, it is the empirical one (Martens 2020, arXiv 1412.1193,
    sections 5 and 11), whose gradients vanish where the model fits these labels.

    Args:
        strategy: provides the selection and the label space; it is in the middle of a task.
        images: (N, 3, H, W); processed one by one, because the mean of squared gradients is needed.
        generator: for sampling the labels.
        labels: (N,), of the images, in place of sampled ones.

    Returns:
        by name, a tensor of the shape of every selected parameter, at least 0.
    """
    names, parameters = zip(*strategy.selection.items(), strict=True)
    totals = [torch.zeros_like(p) for p in parameters]
    text = _Text(strategy.model)
    with text.in_place():
        for i, image in enumerate(images.split(1)):
            logits = strategy.training_logits(image.to(strategy.device))
            odds = logits.detach().softmax(1).cpu()
            if not odds.isfinite().all():
                raise UserError("the Fisher cannot be estimated: logits are NaN or infinite")
            if labels is None:
                label = torch.multinomial(odds, 1, generator=generator)[:, 0]
            else:
                label = labels[i : i + 1]
            loss = F.cross_entropy(logits, label.to(logits.device))
            gradients = text.gradients(loss, parameters)
            for total, gradient in zip(totals, gradients, strict=True):
                if gradient is not None:
                    total += gradient.square()
    return {n: total / len(images) for n, total in zip(names, totals, strict=True)}


class _Text:
    """Text features of a model, encoded once while no weight changes.

    The gradient of an image is propagated to the text features, and from there through one shared
    graph of the classes that have a gradient for any image: the classes that are ranked.
    """

    def __init__(self, model: "CLIPClassifier") -> None:
        self.model, self.encode = model, model.text_features
        self._table: Tensor | None = None  # (K, d), as output by the text tower
        self._encoded: set[int] = set()  # rows of the table that are filled
        self._asked: list[tuple[list[int], Tensor]] = []  # since the last call of `gradients`
        self._classes: list[int] = []  # the classes of the graph
        self._graph: Tensor | None = None

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Replace the model's `text_features` in a `with` block."""
        vars(self.model)["text_features"] = self._features
        try:
            yield
        finally:
            del vars(self.model)["text_features"]

    @torch.no_grad()
    def _encode(self, new: list[int]) -> Tensor:
        if new:
            features = self.encode(new, normalize=False)
            if self._table is None:
                self._table = features.new_zeros(len(self.model.class_names), features.shape[1])
            self._table[new] = features
            self._encoded.update(new)
        assert self._table is not None
        return self._table

    def _features(self, classes: Sequence[int] | None = None, normalize: bool = True) -> Tensor:
        labels = list(range(len(self.model.class_names)) if classes is None else classes)
        table = self._encode([c for c in dict.fromkeys(labels) if c not in self._encoded])
        leaf = table[labels].requires_grad_()
        self._asked.append((labels, leaf))
        return F.normalize(leaf, dim=-1) if normalize else leaf

    def gradients(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
        """Return the gradient of every parameter, or None if it has none."""
        asked, self._asked = self._asked, []
        leaves = [leaf for _, leaf in asked]
        all_gradients = torch.autograd.grad(loss, [*parameters, *leaves], allow_unused=True)
        direct, at_text = all_gradients[: len(parameters)], all_gradients[len(parameters) :]
        through = self._through([labels for labels, _ in asked], at_text, parameters)
        return [
            a if b is None else b if a is None else a + b
            for a, b in zip(direct, through, strict=True)
        ]

    def _through(
        self,
        asked: Sequence[list[int]],
        gradients: Sequence[Tensor | None],
        parameters: Sequence[nn.Parameter],
    ) -> Sequence[Tensor | None]:
        """Propagate gradients from the requested text features to the parameters."""
        nothing = [None] * len(parameters)
        if self._table is None:
            return nothing
        outer = torch.zeros_like(self._table)
        for labels, gradient in zip(asked, gradients, strict=True):
            if gradient is not None:
                outer.index_add_(0, torch.tensor(labels, device=outer.device), gradient)
        reached = outer.any(1).nonzero().flatten().tolist()
        new = [label for label in reached if label not in self._classes]
        if new:
            self._classes += new
            self._graph = self.encode(self._classes, normalize=False)
        if self._graph is None or not self._graph.requires_grad:
            return nothing
        outer = outer[self._classes]
        return torch.autograd.grad(
            self._graph, parameters, outer, retain_graph=True, allow_unused=True
        )
