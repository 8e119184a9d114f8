"""A classifier on features that were computed elsewhere, without towers or a model file."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_clipfit.clip.classifier import CLIPClassifier, ModelIdentity
from cl_clipfit.clip.prompts import DEFAULT_TEMPLATES, TemplatesLike
from cl_clipfit.errors import UserError

FEATURES = "features"  # its model name


class _NoTowers(nn.Module):
    """The interface of an open_clip model, implemented by a table of text features."""

    def __init__(self, text: Tensor, logit_scale: float) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(float(logit_scale)).log())
        self.register_buffer("text", F.normalize(text.float(), dim=-1))
        self.visual = nn.Identity()
        # Never used: there are no pixels.
        self.visual.preprocess_cfg = {"size": 1, "mean": (0.0,) * 3, "std": (1.0,) * 3}  # type: ignore[assignment]

    def encode_image(self, features: Tensor, normalize: bool = False) -> Tensor:
        """Return the features unchanged."""
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """Return the rows with the indices `tokens` (P, 1)."""
        rows: Any = self.text
        return rows[tokens[:, 0]]


class FeatureClassifier(CLIPClassifier):
    """Image features against text features, both computed elsewhere.

    Classes are rows of `text`, in order: names may repeat, the label is the identity. Names that
    are not classes cannot be encoded.

    Args:
        text: (K, d), text features in order of arrival; scaled to unit length.
        logit_scale: the factor on cosine similarities, 100 for CLIP.
        identity: of the model that computed the features.

    Example:
        >>> model = FeatureClassifier(torch.eye(3), 100.0)
        >>> model.add_classes(["crane", "dog", "crane"])
        >>> model(torch.tensor([[0.0, 0.0, 2.0]])).argmax().item()
        2
    """

    def __init__(
        self, text: Tensor, logit_scale: float = 100.0, identity: ModelIdentity | None = None
    ) -> None:
        super().__init__(_NoTowers(text, logit_scale), _no_tokens, identity)

    def _prompts(self, names: Sequence[str], templates: TemplatesLike) -> list[Tensor]:
        first, rows = len(self.class_names), len(self.clip.text)
        if first + len(names) > rows:
            raise UserError(f"the features hold {rows} classes, {first + len(names)} are needed")
        return [torch.tensor([[row]]) for row in range(first, first + len(names))]

    def tokenize(
        self, names: Sequence[str], templates: TemplatesLike = DEFAULT_TEMPLATES
    ) -> list[Tensor]:
        """Refuse: only the classes have features.

        Raises:
            UserError: always.
        """
        raise UserError("precomputed features have no text tower that could encode other names")


def hash_features(text: Tensor, logit_scale: float) -> str:
    """Return a hash over text features and the logit scale."""
    values = text.contiguous().view(torch.uint8).numpy().data
    return hashlib.sha256(repr((tuple(text.shape), logit_scale)).encode() + values).hexdigest()


def _no_tokens(prompts: list[str]) -> Tensor:
    raise UserError("precomputed features have no tokenizer")
