"""ProLIP: the last projection of the image tower, held at its start by a squared distance."""

from collections.abc import Iterable

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cl_clipfit import CLIPStrategy, NotNegative, ScopeOptions, UserError
from cl_clipfit.training.losses import squared_change

NAME = "prolip"
GROUP = "selective fine-tuning"
PAPER = "Fahes et al. 2024, arXiv 2410.05270: cross-entropy + lambda ||V - V_0||^2, lambda = 1 / N"
NEEDS = "nothing of earlier tasks"
RECIPE = {"lr": 3e-4}  # how it was chosen: docs/results/defaults.md
PUBLISHED = {  # all images in one step; the released code sets Adam's epsilon to 1e-4
    "optimizer": "adamw", "lr": 1e-5, "epochs": 300, "batch_size": 1_000_000, "schedule": "cosine",
    "augmentation": "crop-flip", "pull": None,
}  # fmt: skip


class ProlipOptions(ScopeOptions):
    """Settings of ProLIP."""

    pull: NotNegative | None = Field(
        None, description="lambda; default 1 / N for a task of N images per class"
    )


class Prolip(CLIPStrategy):
    """Train V = `visual.proj`, 393,216 parameters on ViT-B/16; V_0 is the pretrained one.

    What is projected does not change, so that images are encoded once: it is the class token after
    the last block, which `image_rows` has at unit length. At the length sqrt(width), the epsilon
    of the LayerNorm behind it changes features by about 1e-5.

    Raises:
        UserError: the image tower is not a ViT of open_clip that is read at its class token.
    """

    extends = True
    towers = ("text",)
    class_tokens = 1
    options_class = ProlipOptions
    options: ProlipOptions

    def trainable(self) -> Iterable[nn.Parameter]:
        """Return the projection (width, d)."""
        visual = self.model.clip.visual
        if getattr(visual, "pool_type", "") != "tok" or getattr(visual, "proj", None) is None:
            raise UserError("prolip needs a ViT of open_clip with a class token and a projection")
        return [visual.proj]

    def before_task(self) -> None:
        """Set lambda for the images per class of the task."""
        super().before_task()
        images = getattr(self.experience, "task_samples", len(self.experience.dataset))
        pull = self.options.pull
        self.pull = len(self.task_classes) / images if pull is None else pull

    def _projected(self, images: Tensor) -> Tensor:
        """Encode images (B, ...) with the current projection: (B, d), unit length."""
        visual = self.model.clip.visual
        width = len(visual.proj)
        tokens = self.model.image_rows(images, self.class_tokens)[:, -width:]
        return F.normalize(visual.ln_post(tokens * width**0.5) @ visual.proj, dim=-1)

    def training_logits(self, images: Tensor) -> Tensor:
        """Compare projected images with the text."""
        with self.model.known_images(images, self._projected(images)):
            return super().training_logits(images)

    def scores(self, images: Tensor) -> Tensor:
        """Score images (B, ...): (B, K)."""
        with self.model.known_images(images, self._projected(images)):
            return super().scores(images)

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return cross-entropy + lambda ||V - V_0||^2."""
        moved = squared_change(self.selection, self.model.pretrained_values)
        return super().compute_loss(logits, labels) + self.term("pull", self.pull * moved)

    def name_features(self, images: Tensor) -> Tensor:
        """Encode images (B, ...) to be compared with other names: (B, d)."""
        return self._projected(images)
