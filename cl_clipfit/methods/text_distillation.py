"""Text distillation: keep the text features of class prompts close to those of zero-shot CLIP.

CLIPFit (Li et al. 2024, arXiv 2409.16718) and KgCoOp (Yao et al. 2023, arXiv 2303.13283) add the
same term to the cross-entropy, lambda * (1 - mean cos). Its mean may be estimated from a sample of
the prompts, so that the cost of a step does not grow with the classes seen.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_clipfit.training.features import label_index
from cl_clipfit.training.losses import cosine_distance
from cl_clipfit.training.strategy import CLIPStrategy

_DRAW_SEED = 3_000_003  # makes draws independent of data order, crops and path points


@dataclass(frozen=True)
class PromptSample:
    """The prompts that one pass distils.

    Attributes:
        classes: labels, in the order in which they are encoded.
        names: positions in the vocabulary; their rows follow those of the classes.
        certain: number of rows at the front that are not drawn.
        drawn_from: number of prompts that the other rows were drawn from; 0 if all are included.
    """

    classes: list[int]
    names: list[int]
    certain: int = 0
    drawn_from: int = 0

    def distance(self, features: Tensor, anchors: Tensor) -> Tensor:
        """Estimate `cosine_distance` over all prompts, without bias; a scalar.

        Stratified sampling (Cochran 1977, Sampling Techniques, chapter 5): the sum over the certain
        rows, plus the mean over the drawn ones times the number of prompts they were drawn from.

        Args:
            features: (P, d), unit length, one row for each of `classes`, then of `names`.
            anchors: (P, d), unit length.

        Example:
            >>> sample = PromptSample([0, 2], [], certain=1, drawn_from=3)
            >>> float(sample.distance(torch.eye(2), torch.tensor([[1.0, 0], [1, 0]])))
            0.75
        """
        if not self.drawn_from:
            return cosine_distance(features, anchors)
        distances = 1 - (features * anchors).sum(-1)
        total = distances[: self.certain].sum()
        total = total + self.drawn_from * distances[self.certain :].mean()
        return total / (self.certain + self.drawn_from)


def draw_positions(count: int, total: int, generator: torch.Generator) -> list[int]:
    """Draw `count` numbers below `total` without replacement; return them in ascending order."""
    return sorted(torch.randperm(total, generator=generator)[:count].tolist())


def sample_prompts(
    certain: Sequence[int], classes: Sequence[int], names: int, limit: int | None,
    generator: torch.Generator,
) -> PromptSample:  # fmt: skip
    """Choose the prompts of a pass.

    Args:
        certain: labels that are always encoded, a subset of `classes`.
        classes: labels of all class prompts.
        names: number of names in the vocabulary.
        limit: number of prompts to draw uniformly from the others; None for all of them.
        generator: a CPU generator, used only if there is something to draw.
    """
    encoded = set(certain)
    others = [c for c in classes if c not in encoded]
    total = len(others) + names
    if limit is None or limit >= total:
        return PromptSample(list(classes), list(range(names)))
    drawn = draw_positions(limit, total, generator)
    labels = [*certain, *(others[i] for i in drawn if i < len(others))]
    drawn_names = [i - len(others) for i in drawn if i >= len(others)]
    return PromptSample(labels, drawn_names, len(certain), total)


class TextDistillation:
    """The distance 1 - mean cos of a step's text features from those of zero-shot CLIP.

    A strategy keeps it in an attribute, so that its generator belongs to the strategy's state, and
    calls it in four hooks: `start_task` in `before_task`, `text_space` in `text_space`, `encoding`
    around the forward pass in `training_logits`, and `distance` in `compute_loss`.

    Args:
        strategy: the method whose text features are distilled.
        seed: seed of the draws.
        scope: the class prompts that are distilled.
        limit: number of prompts to distil in addition to the ranked ones, drawn in every pass; None
            for all.
        vocabulary: additional names to distil.
    """

    def __init__(
        self,
        strategy: CLIPStrategy,
        *,
        seed: int,
        scope: Literal["task", "seen", "seen+vocabulary"],
        limit: int | None = None,
        vocabulary: Sequence[str] = (),
    ) -> None:
        self.strategy, self.scope, self.limit = strategy, scope, limit
        self.vocabulary = vocabulary
        self.sample: PromptSample | None = None  # of the latest pass
        self.generator, self._seed = torch.Generator(), seed
        self.start_task(0)
        self._tokens: Sequence[Tensor] = ()  # of the vocabulary's prompts, one (templates, L) each
        self._vocabulary_anchors: Tensor
        self._vocabulary_text: list[Tensor] = []  # features in the latest pass, once encoded

    def start_task(self, tasks_seen: int) -> None:
        """Seed the draws of a task, so that they do not depend on those of earlier tasks."""
        self.generator.manual_seed((self._seed + _DRAW_SEED * (1 + tasks_seen)) % 2**63)

    def text_space(self) -> Sequence[int]:
        """Return the classes that are ranked or distilled in the current pass."""
        if self.sample and self.scope != "task":
            return self.sample.classes
        return self.strategy.label_space()

    @contextlib.contextmanager
    def encoding(self, active: bool = True) -> Iterator[None]:
        """Choose the prompts of a pass; encode its names with the classes in a `with` block.

        Args:
            active: whether this pass distils at all.
        """
        self._vocabulary_text = []  # releases the graph of the previous pass
        self.sample = self._choose() if active else None
        if not (self.sample and self.sample.names):
            yield
            return
        tokens = [self._tokens[i] for i in self.sample.names]
        with self.strategy.model.encoding_along(tokens) as self._vocabulary_text:
            yield

    def distance(self) -> Tensor:
        """Return 1 - mean cos over the prompts in scope, or its estimate from those of the pass."""
        assert self.sample is not None
        return self.sample.distance(*self.features_and_anchors())

    def features_and_anchors(self) -> tuple[Tensor, Tensor]:
        """Return the text features distilled in this pass and their zero-shot anchors, (P, d)."""
        features, sample, model = self.strategy.features, self.sample, self.strategy.model
        assert features is not None and sample is not None
        text, device = features.text, features.text.device
        if features.classes != sample.classes:  # more are encoded, for ranking or a second stage
            rows = [features.classes.index(c) for c in sample.classes]
            text = text[label_index(rows, device)]
        anchors = model.zero_shot_text_features[label_index(sample.classes, device)]
        if not sample.names:
            return text, anchors
        if not self._vocabulary_text:  # the classes' features were cached: nothing was encoded
            self._vocabulary_text = [model.encode_prompts([self._tokens[i] for i in sample.names])]
        names = self._vocabulary_anchors[label_index(sample.names, device)]
        text = torch.cat([text, F.normalize(self._vocabulary_text[0], dim=-1)])
        return text, torch.cat([anchors, names])

    def encode_vocabulary(self) -> None:
        """Encode the vocabulary once, with the pretrained weights."""
        model = self.strategy.model
        self._tokens = model.tokenize(self.vocabulary, self.strategy.templates)
        with torch.no_grad(), model.pretrained_weights():
            self._vocabulary_anchors = model.encode_prompts(self._tokens)

    def _choose(self) -> PromptSample:
        strategy = self.strategy
        if self.scope == "task":
            return PromptSample(strategy.task_classes, [])
        if self.vocabulary and not self._tokens:
            self.encode_vocabulary()
        ranked, names = strategy.label_space(), len(self.vocabulary)
        return sample_prompts(ranked, strategy.seen_classes, names, self.limit, self.generator)
