"""Terms that hold tuned features or parameters near an anchor; each is 0 at the anchor."""

from collections.abc import Iterable

import torch
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


def mean_squared_change(values: Iterable[Tensor], anchors: Iterable[Tensor]) -> Tensor:
    """Return the mean over tensors of the summed squared change; a scalar.

    CLIPFit's alternative to distillation, over the text biases: one tensor a layer.

    Example:
        >>> float(mean_squared_change([torch.ones(3), torch.zeros(2)], [torch.zeros(3)] * 1 +
        ...     [torch.zeros(2)]))
        1.5
    """
    squares = [(v - a).square().sum() for v, a in zip(values, anchors, strict=True)]
    return torch.stack(squares).mean()
