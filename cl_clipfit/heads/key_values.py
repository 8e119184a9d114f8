"""A memory of features and their labels, which votes for the classes of similar images."""

from torch import Tensor


def key_value_scores(
    features: Tensor, keys: Tensor, labels: Tensor, classes: int, sharpness: float
) -> Tensor:
    """Return exp(-sharpness (1 - f . k)), summed over the keys k of each class.

    Tip-Adapter (Zhang et al. 2022, arXiv 2207.09519, eq. 4 and 5). Keys of zeros alone stand for no
    image and do not vote.

    Args:
        features: (B, d), unit length.
        keys: (N, d).
        labels: (N,), the class of each key.
        classes: K.
        sharpness: beta; the larger, the fewer keys count.

    Returns:
        (B, K), with gradients.

    Example:
        >>> import torch
        >>> keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> key_value_scores(keys[:1], keys, torch.tensor([0, 1, 1]), 2, 1.0)
        tensor([[1.0000, 0.3679]])
    """
    votes = (-sharpness * (1 - features @ keys.T)).exp()
    votes = votes * keys.detach().any(1)
    return votes.new_zeros(len(votes), classes).index_add(1, labels, votes)
