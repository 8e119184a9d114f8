"""How a classifier encodes images: preprocessing, the tower, and what several passes share."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cl_clipfit.clip.encoders.towers import Pass, Precision, Towers
from cl_clipfit.clip.preprocess import Preprocess
from cl_clipfit.clip.tunable import TunableModule
from cl_clipfit.errors import UserError
from cl_clipfit.runtime.shares import divided, own_rows


class ImageSide(TunableModule):
    """The image tower of a classifier; see `CLIPClassifier` for the attributes.

    Args:
        clip: an open_clip model.
        precision: of the passes of both towers.
    """

    micro_batch: int | None = None
    recompute: bool = False
    compiles: bool = False

    def __init__(self, clip: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.precision: Precision = precision
        self.clip: Any = clip.requires_grad_(False).eval()
        self.preprocess = Preprocess.of(clip)
        self._given_images: tuple[Tensor, Tensor] | None = None
        self._embedded: tuple[Tensor, Tensor] | None = None
        self._towers = Towers()
        self._range_checked = False  # of float images, once per change of mode: it waits for a GPU

    @property
    def _how(self) -> Pass:
        return Pass(self.precision, self.recompute, self.compiles)

    def image_features(self, images: Tensor) -> Tensor:
        """Encode images to unit length; in a step of several processes, each encodes a share.

        Args:
            images: uint8 (B, 3, H, W) of any size, preprocessed here; or float, as the tower
                expects it; or float (B, d), already encoded, or rows of `image_rows`.

        Returns:
            (B, d).
        """
        if self._given_images is not None and images is self._given_images[0]:
            return self._given_images[1]
        if images.dim() == 2:
            return F.normalize(self._features_of(images), dim=-1)
        return divided(lambda rows: self._encode_rows(images, rows), len(images))

    def _encode_rows(self, images: Tensor, rows: slice) -> Tensor:
        """Encode some rows of images (B, ...) to unit length."""
        source, inputs = self._embedded or (None, images)
        embedded = source is images  # these rows alone
        if not embedded:
            inputs = self._pixels(images[rows])
        if not (self.micro_batch and torch.is_grad_enabled()):
            return F.normalize(self._encode_images(inputs, embedded), dim=-1)
        features = [
            checkpoint(self._encode_images, chunk, embedded, use_reentrant=False)
            for chunk in inputs.split(self.micro_batch)
        ]
        return F.normalize(torch.cat(features), dim=-1)

    @torch.no_grad()
    def image_rows(self, images: Tensor, class_tokens: int) -> Tensor:
        """Encode images, and append the class tokens of the last blocks: the input of a head.

        Args:
            images: as in `image_features`; rows that were encoded already are returned unchanged.
            class_tokens: number of blocks; only towers of open_clip's ViT have them, others return
                features alone.

        Returns:
            (B, d + blocks * width); the features and each class token have unit length.
        """
        if images.dim() == 2:
            return images
        if not (class_tokens and self._towers.knows_image(self.clip)):
            return F.normalize(self._encode_images(self._pixels(images), False), dim=-1)
        features, tokens = self._towers.encode_with_tokens(
            self.clip, self._pixels(images), class_tokens, self._how
        )
        rows = F.normalize(features, dim=-1), F.normalize(tokens, dim=-1).flatten(1)
        return torch.cat(rows, 1)

    def _features_of(self, rows: Tensor) -> Tensor:
        """Return the features in rows of `image_rows`: what precedes the class tokens."""
        return rows[:, : getattr(self.clip.visual, "output_dim", None)]  # only a ViT has tokens

    def _pixels(self, images: Tensor) -> Tensor:
        """Preprocess uint8 images; refuse other integers, and warn of floats of another range."""
        if images.dtype == torch.uint8:
            return self.preprocess(images)
        if not images.is_floating_point():
            raise UserError(
                f"images are {images.dtype}: pass uint8 from 0 to 255, or float as the image tower"
                " takes them"
            )
        if not self._range_checked:
            self._range_checked = True
            if text := self.preprocess.doubt(images):
                warnings.warn(text, stacklevel=2)
        return images

    def _encode_images(self, inputs: Tensor, embedded: bool) -> Tensor:
        if embedded:
            return self._towers.encode_embedded(self.clip, inputs, self._how)
        return self._towers.encode_images(self.clip, inputs, self._how)

    @contextlib.contextmanager
    def shared_embedding(self, images: Tensor) -> Iterator[None]:
        """Preprocess and embed this tensor object of images only once in a `with` block.

        The layers before the first LayerNorm must not change in the block. Nothing is shared if
        they are trainable, or if the tower is not a ViT of open_clip.
        """
        outer = self._embedded
        if images.dim() == 4 and self._towers.knows_image(self.clip):
            names = ("conv1.weight", "class_embedding", "positional_embedding")
            if not any(self.clip.visual.get_parameter(n).requires_grad for n in names):
                pixels = self._pixels(images[own_rows(len(images))])
                self._embedded = images, self._towers.embed(self.clip, pixels, self._how)
        try:
            yield
        finally:
            self._embedded = outer

    @contextlib.contextmanager
    def known_images(self, images: Tensor, features: Tensor) -> Iterator[None]:
        """Use these features for this tensor object of images in a `with` block.

        The image tower must not change between the encoding and the end of the block.
        """
        outer, self._given_images = self._given_images, (images, features)
        try:
            yield
        finally:
            self._given_images = outer
