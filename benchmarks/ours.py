"""The training steps of CLIPFit and MERGETUNE as the strategies take them, without Avalanche."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from benchmarks.published import ANCHOR_WEIGHT, LINE_SAMPLES, LINE_WEIGHT, sgd
from cl_clipfit.clip.classifier import CLIPClassifier
from cl_clipfit.training.losses import cosine_distance


def clipfit_loss(model: CLIPClassifier, images: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of `strategies/clipfit.py`, in a task of all classes."""
    image, text = model.image_features(images), model.text_features()
    loss = F.cross_entropy(model.logits(image, text), labels)
    anchors = model.zero_shot_text_features
    return loss + ANCHOR_WEIGHT * cosine_distance(text, anchors)


def mergetune_loss(
    model: CLIPClassifier, images: Tensor, labels: Tensor, host_text: Tensor
) -> Tensor:
    """Return the loss of `strategies/mergetune.py` with space=text-features.

    Args:
        model: with a learned context.
        images: (B, 3, H, W), or features (B, d) encoded already.
        labels: (B,).
        host_text: (C, d) at the end of the first stage, not normalised.
    """
    image = model.image_features(images)
    raw = model.text_features(normalize=False)
    text = F.normalize(raw, dim=-1)
    loss = F.cross_entropy(model.logits(image, text), labels)
    anchors = model.zero_shot_text_features
    loss = loss + ANCHOR_WEIGHT * cosine_distance(text, anchors)
    for alpha in LINE_SAMPLES:
        point = F.normalize(host_text + alpha * (raw - host_text), dim=-1)
        line = F.cross_entropy(model.logits(image, point), labels)
        loss = loss + LINE_WEIGHT / len(LINE_SAMPLES) * line
    return loss


def step(model: CLIPClassifier, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Return a function that takes a step of the published optimiser on what trains."""
    trained = [p for p in model.parameters() if p.requires_grad]
    # As `training/optimization.py` has it.
    optimizer = sgd(trained, fused=all(p.is_cuda for p in trained) or None)

    def take() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return take
