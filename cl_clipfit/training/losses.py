"""Loss terms that hold tuned features, predictions or weights at an anchor; they are 0 there."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine_distance(features: Tensor, anchors: Tensor) -> Tensor:
    """Return 1 - mean cosine similarity of rows; a scalar, from 0 (same directions) to 2.

    CLIPFit's distillation of the text features (Li et al. 2024, arXiv 2409.16718) and KgCoOp's
    regulariser (Yao et al. 2023, arXiv 2303.13283). The "1 -" matters: minimising the mean
    similarity itself would drive the features away from the anchor.

    Args:
        features: (N, d), unit length.
        anchors: (N, d), unit length.

    Example:
        >>> rows = torch.eye(2)
        >>> float(cosine_distance(rows, rows)), float(cosine_distance(rows, rows.flip(0)))
        (0.0, 1.0)
    """
    return 1 - (features * anchors).sum(-1).mean()


def l2_distance(features: Tensor, anchors: Tensor) -> Tensor:
    """Return the mean Euclidean distance of rows, not squared; a scalar.

    The alternative of the code released with MERGETUNE (Wang et al. 2026, arXiv 2601.10497). Rows
    at their anchor have no gradient.

    Args:
        features: (N, d).
        anchors: (N, d).

    Example:
        >>> rows = torch.eye(2)
        >>> float(l2_distance(rows, rows)), float(l2_distance(2 * rows, rows))
        (0.0, 1.0)
    """
    return torch.linalg.vector_norm(features - anchors, dim=-1).mean()


def distillation(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the mean Kullback-Leibler divergence of rows from a teacher's; a scalar.

    KL(softmax(teacher / T) || softmax(logits / T)). It differs by a constant from the cross-entropy
    with soft labels of Hinton et al. 2015 (arXiv 1503.02531), and is not multiplied by T^2.

    Args:
        logits: (N, C).
        teacher: (N, C), without gradients.
        temperature: T.

    Example:
        >>> certain = torch.tensor([[100.0, 0.0]])
        >>> distillation(torch.zeros(1, 2), certain).exp(), distillation(certain, certain)
        (tensor(2.), tensor(0.))
    """
    student, target = ((x / temperature).log_softmax(1) for x in (logits, teacher))
    return F.kl_div(student, target, reduction="batchmean", log_target=True)


def squared_change(
    values: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    rates: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Return sum of rates * (values - start)^2 over all entries; a scalar with gradients.

    Args:
        values: by name, at least one tensor.
        start: by name; further names are ignored.
        rates: by name, of the values' shapes; default all 1.

    Example:
        >>> squared_change({"w": torch.ones(3)}, {"w": torch.zeros(3)})
        tensor(3.)
    """
    squares = {name: (value - start[name]).square() for name, value in values.items()}
    return torch.stack([(rates[n] * s if rates else s).sum() for n, s in squares.items()]).sum()
