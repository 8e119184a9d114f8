"""Methods that keep the weights of each task, and choose or mix them for each image."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cl_clipfit.bank.per_sample_norms import mixable, mixed_image_features
from cl_clipfit.clip.prompts import TemplatesLike
from cl_clipfit.runtime.out_of_memory import encode_images
from cl_clipfit.training.features import Workload
from cl_clipfit.training.strategy import CLIPStrategy

_IMAGES = 2000  # of a task, for what tells tasks apart; as many as the bank's statistics
Values = dict[str, Tensor]


class _Scored:
    """What scoring computes once for all batches, or for several scores of one; not state."""

    def __init__(self) -> None:
        self.text: Tensor | None = None
        self.batch: tuple[Tensor, Tensor] | None = None


class PerTaskStrategy(CLIPStrategy):
    """Keep what each task trained, and score each image with weights of its own.

    A method implements `remember`, `recall` and `shares`, which tell from the zero-shot feature of
    an image how much each task counts. Image features of task t are block t of (B, tasks * d),
    times the share of t; text features are in the same blocks. Their products are the scores: those
    of one task if the shares are 0 and 1, else the mean of them.

    LayerNorms of the image tower differ within a batch, and their weights are mixed. With other
    parameters in the image tower, or if the method scores in its own way, images are grouped by
    task, which needs shares of 0 and 1.

    Attributes:
        values: what each task trained.
    """

    repeats_images = True  # a sample of them, for `remember`

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.values: list[Values] = []
        self._scored = _Scored()

    @abstractmethod
    def remember(self, features: Tensor, labels: Tensor) -> None:
        """Learn what tells the images of a task from others.

        Args:
            features: (N, d), zero-shot, unit length, on the CPU.
            labels: (N,).
        """

    @abstractmethod
    def shares(self, features: Tensor) -> Tensor:
        """Return how much each task counts for images with zero-shot features (B, d): (B, T)."""

    @property
    def mixes(self) -> bool:
        """Whether weights can differ between the images of a batch."""
        own = CLIPStrategy.scores, CLIPStrategy.name_features
        above = super().scores, super().name_features
        plain = all(getattr(a, "__func__", None) is b for a, b in zip(above, own, strict=True))
        return plain and mixable(self.model, self.selection)

    def before_task(self) -> None:
        """Forget what belongs to the weights before the task."""
        self._scored = _Scored()
        super().before_task()

    def after_task(self) -> None:
        """Keep what the task trained, and learn to tell its images."""
        super().after_task()
        images, labels = self.task_sample(_IMAGES, by_class=True)
        with self.model.pretrained_weights():
            features = encode_images(self, images)
        self.remember(features, labels)
        self.values = [*self.values, self.current_values()]
        self._scored = _Scored()

    def workload(self) -> Workload:
        """Add the passes of the pretrained tower over a sample and over the test images."""
        work = super().workload()
        passes = work.test_passes + 2
        return replace(work, test_passes=passes, sampled=(*work.sampled, (1, _IMAGES)))

    # ---- scoring ---------------------------------------------------------------------------------

    def scores(self, images: Tensor) -> Tensor:
        """Score images (B, ...), each with its weights: (B, K)."""
        if not self.values:
            return super().scores(images)
        if not self.mixes:
            return self._grouped(images, super().scores, self._shares(images))
        if self._scored.text is None:
            self._scored.text = self._by_task(self.model.text_features)
        return self.model.logits(self._blocks(images), self._scored.text)

    def probe_features(self, names: Sequence[str], templates: TemplatesLike) -> Tensor:
        """Encode class names of a probe with the weights of each task: (P, tasks * d)."""
        if not self.values:
            return super().probe_features(names, templates)
        encode = super().probe_features
        return self._by_task(lambda: encode(names, templates))

    def name_features(self, images: Tensor) -> Tensor:
        """Encode images (B, ...), each with its weights: (B, tasks * d)."""
        return self._blocks(images) if self.values else super().name_features(images)

    def _blocks(self, images: Tensor) -> Tensor:
        """Return image features in the block of each task, times its share: (B, tasks * d)."""
        if self._scored.batch is None or self._scored.batch[0] is not images:
            shares = self._shares(images)
            if self.mixes:
                features = self._mixed(images, shares)
            else:
                features = self._grouped(images, super().name_features, shares)
            blocks = (shares[:, :, None] * features[:, None]).flatten(1)
            self._scored.batch = images, blocks
        return self._scored.batch[1]

    @torch.no_grad()
    def _shares(self, images: Tensor) -> Tensor:
        """Return the shares (B, tasks) of images."""
        with self.model.pretrained_weights():
            # Not `image_features`, for which scoring may hold those of the current weights.
            return self.shares(self.model.image_features(images.view_as(images)))

    def _by_task(self, encode: Callable[[], Tensor]) -> Tensor:
        """Return what is encoded with the weights of each task, side by side."""
        blocks = []
        for values in self.values:
            with self.model.weights(values), self.model.cached_text():
                blocks.append(encode())
        return torch.cat(blocks, 1)

    @torch.no_grad()
    def _mixed(self, images: Tensor, shares: Tensor) -> Tensor:
        """Encode images with the mean of the tasks' LayerNorms, weighted by shares: (B, d)."""
        norms = [n for n in self.selection if n.startswith("clip.visual.")]
        stacked = {n: torch.stack([values[n] for values in self.values]) for n in norms}
        mixed = {n: torch.einsum("bt,t...->b...", shares, v) for n, v in stacked.items()}
        rows = [{n: v[i] for n, v in mixed.items()} for i in range(len(images))]
        index = torch.arange(len(images), device=images.device)
        return mixed_image_features(self.model, images.view_as(images), index, rows)

    def _grouped(self, images: Tensor, score: Callable[[Tensor], Tensor], shares: Tensor) -> Tensor:
        """Score the images of each task with its weights, one task after the other."""
        choices, rows = shares.argmax(1), dict[int, Tensor]()
        for task in choices.unique().tolist():
            with self.model.weights(self.values[task]), self.model.cached_text():
                rows[task] = score(images[choices == task])
        first = next(iter(rows.values()))
        scores = first.new_empty(len(images), first.shape[1])
        for task, part in rows.items():
            scores[choices == task] = part
        return scores

    @abstractmethod
    def recall(self, statistics: Sequence[Mapping[str, Tensor]]) -> None:
        """Restore what `remember` kept, from the bank's statistics of each task."""

    def load_tasks(
        self, values: Sequence[Values], statistics: Sequence[Mapping[str, Tensor]]
    ) -> None:
        """Restore what it keeps of each task from a bank, to score as it did after the last."""
        self.values = list(values)
        self.recall(statistics)
        self._scored = _Scored()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state."""
        super().load_state_dict(state)
        self._scored = _Scored()
