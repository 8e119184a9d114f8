"""Loss and accuracy on lines and planes between solutions of a strategy."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_clipfit.evaluation.feature_reuse import compares_as_clip, leaves_images, reads_features
from cl_clipfit.merging import Plane, barrier, segment
from cl_clipfit.runtime.out_of_memory import encode_images

if TYPE_CHECKING:
    from cl_clipfit.training.strategy import CLIPStrategy

POINTS = 11
LINES = (("zero-shot", "host"), ("previous", "host"), ("merged", "host"), ("zero-shot", "merged"))
_MARGIN = 0.25  # relative to the longer side of the extent of the solutions
Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Sample:
    """Images that a landscape is measured on.

    Attributes:
        images: (N, 3, H, W), or their features (N, d).
        labels: (N,).
        classes: the classes that an image is classified into.
    """

    images: Tensor
    labels: Tensor
    classes: Sequence[int]


def loss_and_accuracy(
    strategy: "CLIPStrategy", values: Values, sample: Sample
) -> tuple[float, float]:
    """Return cross-entropy and accuracy in percent at other values of the selection.

    Args:
        strategy: its weights are restored afterwards.
        values: of the selection.
        sample: what to classify.
    """
    columns = torch.tensor(list(sample.classes))
    matches = sample.labels.cpu()[:, None] == columns
    if not matches.any(1).all():
        raise ValueError("the sample has labels that are not among its classes")
    with strategy.model.weights(values):
        among = _scores(strategy, sample)
    targets = matches.int().argmax(1).to(among.device)
    right = int((among.argmax(1) == targets).sum())
    return float(F.cross_entropy(among, targets)), 100.0 * right / len(targets)


@torch.no_grad()
def _scores(strategy: "CLIPStrategy", sample: Sample) -> Tensor:
    """Score a sample against its classes: (N, C); if possible, only these are encoded."""
    model, classes = strategy.model, list(sample.classes)
    if not compares_as_clip(strategy):
        return strategy.score_all(sample.images)[:, classes]
    text = model.eval().text_features(classes)
    return strategy.in_batches(
        lambda batch: model.logits(model.image_features(batch), text).cpu(), sample.images
    )


def encode_shared(strategy: "CLIPStrategy", names: Iterable[str], sample: Sample) -> Sample:
    """Replace images by features, if points that differ in these parameters share them.

    Args:
        strategy: for scoring; its image tower must not change while the sample is in use.
        names: of the parameters.
        sample: returned unchanged if its features differ between points.
    """
    shared = reads_features(strategy) and leaves_images(strategy, names)
    if sample.images.dim() == 2 or not shared:
        return sample
    strategy.model.eval()
    encoded = encode_images(strategy, sample.images, strategy.class_tokens)
    return replace(sample, images=encoded)


def profile(
    strategy: "CLIPStrategy",
    start: Values,
    end: Values,
    sample: Sample,
    points: int = POINTS,
    ends: Sequence[tuple[float, float]] = (),
) -> dict[str, Any]:
    """Measure the straight line between two solutions.

    Args:
        strategy: for scoring.
        start: values at alpha = 0.
        end: values at alpha = 1.
        sample: what to classify.
        points: number of points on the line, including its ends.
        ends: loss and accuracy at start and end, if they are already known.

    Returns:
        "alpha", "loss" and "accuracy", one number per point, and "barrier": how far the loss
        rises above the straight line between the losses of the ends (`merging.barrier`).
    """
    measured = dict(zip((0.0, 1.0), ends, strict=False))
    curve = [
        (alpha, *(measured.get(alpha) or loss_and_accuracy(strategy, values, sample)))
        for alpha, values in segment(start, end, points)
    ]
    alphas, losses, accuracies = (list(column) for column in zip(*curve, strict=True))
    return {"alpha": alphas, "loss": losses, "accuracy": accuracies, "barrier": barrier(losses)}


def profiles(
    strategy: "CLIPStrategy", points: Mapping[str, Values], sample: Sample, count: int = POINTS
) -> dict[str, dict[str, Any]]:
    """Measure the lines of a merge; a point that several of them share is measured once.

    Args:
        strategy: for scoring.
        points: "zero-shot", "previous", "host" and "merged" values of the selection, or a
            subset of them.
        sample: what to classify.
        count: points on each line.

    Returns:
        a `profile` for "zero-shot to host", "previous to host", "merged to host" and "zero-shot to
        merged", if both ends are given.
    """
    sample = encode_shared(
        strategy, {name for values in points.values() for name in values}, sample
    )
    first = "previous" in points and _same(points["previous"], points.get("zero-shot"))
    measured = {
        name: loss_and_accuracy(strategy, values, sample)
        for name, values in points.items()
        if not (name == "previous" and first)
    }
    lines: dict[str, dict[str, Any]] = {}
    for a, b in LINES:
        if a not in points or b not in points:
            continue
        if a == "previous" and first:
            lines[f"{a} to {b}"] = lines[f"zero-shot to {b}"]
            continue
        ends = measured[a], measured[b]
        lines[f"{a} to {b}"] = profile(strategy, points[a], points[b], sample, count, ends=ends)
    return lines


def _same(one: Values, other: Values | None) -> bool:
    return other is not None and all(torch.equal(one[name], other[name]) for name in one)


def plane_axes(
    points: Sequence[tuple[float, float]], count: int = POINTS
) -> tuple[list[float], list[float]]:
    """Return `count` equally spaced x and y that cover all points (x, y), with a margin.

    The margin is the same on all sides, so that nearly collinear points have space beside the line.
    """
    sides = [(min(side), max(side)) for side in zip(*points, strict=True)]
    margin = _MARGIN * max(high - low for low, high in sides)
    x, y = (
        [low - margin + (high - low + 2 * margin) * i / (count - 1) for i in range(count)]
        for low, high in sides
    )
    return x, y


def plane_landscape(
    strategy: "CLIPStrategy",
    plane: Plane,
    points: Mapping[str, Values],
    samples: Mapping[str, Sample],
    count: int = POINTS,
) -> dict[str, Any]:
    """Measure a grid on a plane through solutions.

    Args:
        strategy: for scoring.
        plane: the plane through the solutions.
        points: solutions that the grid covers, by name; those off the plane are projected onto it.
        samples: what to classify, by name.
        count: points on each side of the grid.

    Returns:
        "unit", the distance that is 1 in coordinates; "points", the coordinates by name; "x" and
        "y" of the grid; and for every sample "loss" and "accuracy", one row per y.

    Raises:
        ValueError: the loss is NaN or infinite.
    """
    at = {name: plane.coordinates(values) for name, values in points.items()}
    xs, ys = plane_axes(list(at.values()), count)
    grids: dict[str, dict[str, list[list[float]]]]
    grids = {name: {"loss": [], "accuracy": []} for name in samples}
    for y in ys:
        for grid in grids.values():
            grid["loss"].append([])
            grid["accuracy"].append([])
        for x in xs:
            values = plane.values(x, y)
            for name, sample in samples.items():
                loss, accuracy = loss_and_accuracy(strategy, values, sample)
                if not math.isfinite(loss):
                    raise ValueError(f"the loss at ({x:.2f}, {y:.2f}) of the plane is {loss}")
                grids[name]["loss"][-1].append(loss)
                grids[name]["accuracy"][-1].append(accuracy)
    coordinates = {name: list(position) for name, position in at.items()}
    return {"unit": plane.u_length, "points": coordinates, "x": xs, "y": ys, **grids}
