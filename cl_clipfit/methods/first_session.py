"""First-session adaptation: tune the image tower on the first task alone, then fit a head to it."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from cl_clipfit.clip.prompts import TemplatesLike
from cl_clipfit.config.options import Options
from cl_clipfit.evaluation.feature_reuse import leaves_images
from cl_clipfit.methods.closed_form import ClosedFormStrategy
from cl_clipfit.methods.per_task import PerTaskStrategy
from cl_clipfit.training.features import Workload
from cl_clipfit.training.strategy import CLIPStrategy


class FirstSession(ClosedFormStrategy):
    """Train a base method on the first task, freeze it, and learn every task in closed form.

    McDonnell et al. 2023 (arXiv 2307.02251, algorithm 1, phases 1 and 2). The head sees all tasks
    by the tuned tower, the first one after training; until then the base classifies. Probes are
    scored zero-shot. `FirstSession.of(method, base)` returns the class that does all this.

    Args:
        options: the closed-form method's options; default: those of its `options_class`.
        first_session_options: the base's options; default: those of its `options_class`.
        **kwargs: as in `CLIPStrategy`; the recipe is the base's.
    """

    repeats_images = True
    base_class: ClassVar[type[CLIPStrategy]] = CLIPStrategy
    """The base, set by `of`."""
    head_options: Any = None

    def __init__(
        self, *, options: Any = None, first_session_options: Options | None = None, **kwargs: Any
    ) -> None:
        self.head_options = options or self.options_class()
        given = first_session_options or self.base_class.options_class()
        # Not super(): Avalanche gives every class between a copy of the constructor it inherits.
        self.base_class.__init__(self, options=given, **kwargs)

    @classmethod
    def of(cls, method: type[ClosedFormStrategy], base: type[CLIPStrategy]) -> type["FirstSession"]:
        """Return the class that trains `base` on the first task, and fits the head of `method`."""
        settings = {
            "base_class": base, "learning": "gradient", "towers": base.towers,
            "compares_text": base.compares_text,  # in training, which is estimated by it
        }  # fmt: skip
        return type(f"{method.__name__}{base.__name__}", (cls, method, base), settings)

    @classmethod
    def refuses(cls, base: type[CLIPStrategy]) -> str:
        """Return why a method cannot be the base; "" if it can."""
        if issubclass(base, PerTaskStrategy):
            return "has weights of its own for each task"
        if base.base_option:
            return "builds on another method itself"
        if base.learning != "gradient" or "image" not in base.towers:
            return "does not train the image tower"
        return ""

    @property
    def takes_steps(self) -> bool:
        """Whether this is the first task."""
        return self.tasks_seen == 0

    def select(self) -> None:
        """Refuse a base whose options leave the image tower as it is."""
        super().select()
        if leaves_images(self, self.selection):
            raise ValueError("the first session trains nothing of the image tower")

    def add_experience(self) -> None:
        """Wait for the end of the task: the tower may still change."""

    def after_task(self) -> None:
        """Add the images of the task by the tuned tower, and fit the head to all so far."""
        if self.tasks_seen == 1:
            self.base_class.after_task(self)
        self.model.eval()  # of what a base may have added, such as dropout
        super().add_experience()
        super().after_task()

    def workload(self) -> Workload:
        """Return the cost of the base in the first task, and a pass over the images of every."""
        work = self.base_class.workload(self)
        return replace(work, tasks=1, sampled=(*work.sampled, (1, sys.maxsize)))

    def probe_features(self, names: Sequence[str], templates: TemplatesLike) -> Tensor:
        """Encode class names of a probe by zero-shot CLIP: (K, d)."""
        return self.model.zero_shot_names(names, templates)

    def name_features(self, images: Tensor) -> Tensor:
        """Encode images (B, ...) by zero-shot CLIP, as the names of a probe: (B, d)."""
        with self.model.pretrained_weights():
            # Not `image_features`, for which scoring may hold those of the tuned tower.
            return self.model.image_rows(images, 0)

    def name_scores(self, images: Tensor, names: Tensor) -> Tensor:
        """Score images against other names (P, d): (B, P); -inf once the head classifies."""
        if self.head is None:
            return super().name_scores(images, names)
        return names.new_full((len(images), len(names)), -torch.inf)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the base, and the sums of the head."""
        state = self.base_class.state_dict(self)
        of_head = ("errors", "_projection")  # attributes; the sums and the seed tell both
        kept = {name: value for name, value in state.items() if name not in of_head}
        return {**kept, "head": self.head_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        of_base = {name: value for name, value in state.items() if name != "head"}
        self.base_class.load_state_dict(self, of_base)
        self.load_head_state(state["head"])


class AfterFirstSession(ClosedFormStrategy):
    """A method in closed form whose option `first_session` names what tunes the tower first."""

    base_option = "first_session"

    @classmethod
    def over(cls, base: type[CLIPStrategy]) -> type[FirstSession]:
        """Return the class that trains `base` on the first task."""
        return FirstSession.of(cls, base)

    @classmethod
    def refuses(cls, base: type[CLIPStrategy]) -> str:
        """Return why a method cannot be the base; "" if it can."""
        return FirstSession.refuses(base)
