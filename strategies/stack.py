"""Stack: any method beside Gaussian heads on zero-shot features, weighted by leave-one-out."""

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from cl_clipfit import CLIPStrategy, Count, Options, Workload, encode_images, read_samples
from cl_clipfit.heads.fusion import add_namesakes
from cl_clipfit.heads.stacking import StackedHead

NAME = "stack"
GROUP = "heads beside any method"
PAPER = "this project (docs/method.md); stacking: Wolpert 1992, Neural Networks 5"
NEEDS = "sums of zero-shot features and their products (statistics), and what its base keeps"

_CHUNK = 2000  # images whose features and scores are in memory together
_ONE_NAME = 1 - 1e-5  # cosine of text features that are of the same prompts
_MOST_KEPT = 20_000  # images whose rows are kept for the next evaluation


class StackOptions(Options):
    """Settings of the stack; other settings of its label go to the base."""

    base: str = Field("clipfit", description="the method that classifies by text")
    width: Count = Field(1000, description="random features of the head")


class _KeptRows:
    """Rows by the contents of images, and names of probes: every evaluation encodes the same."""

    def __init__(self) -> None:
        self.rows: dict[tuple[object, ...], Tensor] = {}
        self.names: dict[str, Tensor] = {}
        self.room = _MOST_KEPT

    def of(self, images: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the rows of images (B, ...), which are encoded if they are new."""
        values = images.detach().cpu().contiguous().view(torch.uint8).numpy()
        key = images.shape, images.dtype, hashlib.sha256(values.data).digest()
        if key in self.rows:
            return self.rows[key]
        rows = encode(images)
        if len(rows) <= self.room:
            self.rows[key] = rows
            self.room -= len(rows)
        return rows


class Stack(CLIPStrategy):
    """Train a base method on every task, and fit a Gaussian head to zero-shot features beside it.

    The head's sums grow by every task. Before the base trains on a task, both classify its images:
    the base as it is, and the head without the image at hand. The losses of their weighted sum
    choose the weights.
    """

    base_option = "base"
    options_class: ClassVar[type[Options]] = StackOptions
    class_tokens = 2
    extends = True
    base_class: ClassVar[type[CLIPStrategy]] = CLIPStrategy
    """The base, set by `over`."""

    def __init__(
        self, *, options: Any = None, base_options: Options | None = None,
        host_options: Options | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        self.stacking: Any = options or self.options_class()
        if host_options is not None:  # of a base that continues a host
            kwargs["host_options"] = host_options
        super().__init__(options=base_options or self.base_class.options_class(), **kwargs)
        self.gaussian: StackedHead | None = None
        self._kept = _KeptRows()
        self.within_task = False  # learned by the head, and not yet by the base

    @classmethod
    def over(cls, base: type[CLIPStrategy]) -> type["Stack"]:
        """Return the class that trains `base` and stacks it with the head."""
        learning = "gradient" if base.learning == "gradient" else "closed-form"
        settings = {"base_class": base, "learning": learning}
        return type(f"{cls.__name__}{base.__name__}", (cls, base), settings)

    @classmethod
    def refuses(cls, base: type[CLIPStrategy]) -> str:
        """Return why a method cannot be the base; "" if it can."""
        if base.learning == "closed-form" or issubclass(base, Stack):
            return "has a closed-form head itself"
        return ""

    def add_experience(self) -> None:
        """Score the images by both, then add them to the head's sums."""
        super().add_experience()
        self.gaussian = self.gaussian or self._empty_head()
        labels = torch.as_tensor(list(self.experience.dataset.targets))
        known = self.model.classes_until(max(self.task_classes))  # none of a stream that follows
        self.gaussian.add(labels, self._scored_images(known), known)
        at_once = all(
            getattr(self.experience, name, True) for name in ("is_first_subexp", "is_last_subexp")
        )
        self.within_task = self.takes_steps and at_once

    def _scored_images(self, known: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield rows (N, D) of an experience and the base's scores (N, known), in parts."""
        data, base = self.experience.dataset, super().scores
        for start in range(0, len(data), _CHUNK):
            images, _ = read_samples(data, range(start, min(start + _CHUNK, len(data))))
            rows = self._rows(images)
            with self.model.cached_text():
                scores = self.in_batches(lambda batch: base(batch).cpu(), images)
            yield rows, scores[:, :known]

    def after_task(self) -> None:
        """Let the state hold the head's sums again."""
        super().after_task()
        self.within_task = False

    def workload(self) -> Workload:
        """Add the two passes over a task's images that score them."""
        work = super().workload()
        return replace(work, sampled=(*work.sampled, (2, sys.maxsize)))

    def _empty_head(self) -> StackedHead:
        features = self.model.zero_shot_text_features.shape[1]
        return StackedHead(features, self.stacking.width, self.seeds.init)

    @torch.no_grad()
    def _rows(self, images: Tensor) -> Tensor:
        """Encode images (N, ...) by the zero-shot tower: rows (N, D) on the CPU."""
        with self.model.pretrained_weights():
            return encode_images(self, images, self.class_tokens)

    def scores(self, images: Tensor) -> Tensor:
        """Score images (B, ...): (B, K)."""
        scores = super().scores(images)
        if self.gaussian is None:
            return scores
        return self.gaussian(scores, self._zero_shot_rows(images))

    def _zero_shot_rows(self, images: Tensor) -> Tensor:
        """Encode images (B, ...) by the zero-shot tower: rows (B, D)."""
        if images.dim() == 2:  # encoded once for all methods
            return self.model.image_rows(images, self.class_tokens)
        return self._kept.of(images, self._encode_rows)

    def _encode_rows(self, images: Tensor) -> Tensor:
        with self.model.pretrained_weights():
            return self.model.image_rows(images, self.class_tokens)

    def probe_features(self, names: Sequence[str], templates: Any) -> Tensor:
        """Encode class names of a probe by zero-shot CLIP: (K, d)."""
        key = repr((names, templates))
        if key not in self._kept.names:
            self._kept.names[key] = self.model.zero_shot_names(names, templates)
        return self._kept.names[key]

    def name_features(self, images: Tensor) -> Tensor:
        """Encode images (B, ...) by zero-shot CLIP, as the names of a probe: (B, d)."""
        return self._features_of(self._zero_shot_rows(images))

    def _features_of(self, rows: Tensor) -> Tensor:
        """Return the image features (B, d) in rows (B, D)."""
        return rows[:, : self.model.zero_shot_text_features.shape[1]]

    def joint_scores(self, images: Tensor, names: Tensor) -> Tensor:
        """Score images against all K classes and other names (P, d) together: (B, K + P).

        The images may be of any domain: far from what was learned, zero-shot CLIP classifies. A
        name that is a class and another name too has the probability of both.
        """
        rows = self._zero_shot_rows(images)  # once: to find them costs a hash of the images
        classes, features = self.model.zero_shot_text_features, self._features_of(rows)
        named = self.model.logits(features, names)
        scores = torch.cat([super().scores(images), named], 1)
        if self.gaussian is None:
            return scores
        joint = self.gaussian(scores, rows, self.model.logits(features, classes))
        return add_namesakes(joint, classes @ names.T > _ONE_NAME)

    def head_state(self) -> dict[str, Tensor]:
        """Return the head's sums."""
        return self.gaussian.state_dict() if self.gaussian else {}

    def head_bytes(self, images: int, classes: int) -> int:
        """Return the size of the head's sums."""
        return self._empty_head().size(len(self.model.class_names))

    def load_head_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the head."""
        self.gaussian = self._empty_head() if state else None
        if self.gaussian:
            self.gaussian.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the base, and the head's sums.

        Not within a task that arrives at once, where every epoch would write them again: a run that
        is resumed there has the state before the task, and adds the task to the sums anew. Of a
        task in pieces, the weights between these, with which its images were scored, are not kept.
        """
        head = {} if self.within_task else {"head": self.head_state()}
        return {**super().state_dict(), **head}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        super().load_state_dict({n: v for n, v in state.items() if n != "head"})
        if "head" in state:
            self.load_head_state(state["head"])
