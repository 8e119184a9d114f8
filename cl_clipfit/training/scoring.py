"""How a strategy scores images: the hooks of a method, and passes in batches that fit in memory."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cl_clipfit.clip import CLIPClassifier
from cl_clipfit.clip.prompts import TemplatesLike
from cl_clipfit.runtime.shares import in_shared_batches


class Scoring:
    """The part of `CLIPStrategy` that scores images of the stream and of probes."""

    model: CLIPClassifier
    device: torch.device
    eval_mb_size: int
    warn: Callable[[str], None]

    def scores(self, images: Tensor) -> Tensor:
        """Score images (B, ...) against all K classes: (B, K), the largest wins."""
        return self.model(images)

    def probe_features(self, names: Sequence[str], templates: TemplatesLike) -> Tensor:
        """Encode class names of a probe, which are not classes of the stream: (K, d)."""
        return self.model.encode_names(names, templates)

    def joint_scores(self, images: Tensor, names: Tensor) -> Tensor:
        """Score images (B, ...) against all K classes and other names together: (B, K + P).

        Args:
            images: as in `scores`.
            names: (P, d), from `probe_features`.
        """
        return torch.cat([self.scores(images), self.name_scores(images, names)], 1)

    def name_scores(self, images: Tensor, names: Tensor) -> Tensor:
        """Score images (B, ...) against other names (P, d), on the scale of `scores`: (B, P)."""
        return self.model.logits(self.name_features(images), names)

    def name_features(self, images: Tensor) -> Tensor:
        """Encode images (B, ...) to be compared with other names: (B, d); default: as any image."""
        return self.model.image_features(images)

    @torch.no_grad()
    def score_all(self, images: Tensor) -> Tensor:
        """Score all images (N, 3, H, W) of the stream, in batches: (N, K) on the CPU."""
        self.model.eval()
        with self.model.cached_text():
            return self.in_batches(lambda batch: self.scores(batch).cpu(), images)

    @torch.no_grad()
    def score_probe(self, images: Tensor, names: Sequence[str], templates: TemplatesLike) -> Tensor:
        """Score images (N, 3, H, W) zero-shot against other class names: (N, len(names))."""
        self.model.eval()
        text = self.probe_features(names, templates)
        model = self.model
        return self.in_batches(
            lambda batch: model.logits(self.name_features(batch), text).cpu(), images
        )

    def in_batches(
        self, function: Callable[..., Tensor], images: Sequence[Any] | Tensor, *tensors: Tensor
    ) -> Tensor:
        """Apply a function to `eval_mb_size` images at a time; to fewer once memory runs out.

        Several processes each take a share of the images, and gather the results.

        Args:
            function: takes images (B, ...) on the device, and the same rows of each of `tensors`;
                returns one row per image.
            images: (N, ...), a tensor or a sequence that stands for one.
            tensors: (N, ...), with one row per image.

        Returns:
            the concatenated results, (N, ...).

        Raises:
            UserError: there is not enough memory for one image.
        """
        rows, size = in_shared_batches(function, images, self.device, self.eval_mb_size, *tensors)
        if size != self.eval_mb_size:
            self.eval_mb_size = size
            self.warn(f"out of memory in evaluation: {size} images at a time from now on")
        return rows
