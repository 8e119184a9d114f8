"""A zero-shot classifier on any open_clip model, to which classes can be added."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_clipfit.clip.context import insert_context
from cl_clipfit.clip.encoders.towers import Precision
from cl_clipfit.clip.image_side import ImageSide
from cl_clipfit.clip.prompts import (
    DEFAULT_TEMPLATES,
    TemplatesLike,
    Tokenizer,
    check_prompts,
    ensemble,
    tokenize,
)
from cl_clipfit.runtime.shares import divided

_SHARED_FROM = 16  # prompts' names for each process: fewer are encoded by all of them


@dataclass(frozen=True)
class ModelIdentity:
    """The identity of pretrained weights.

    Attributes:
        architecture: name of the open_clip architecture, or "mini".
        pretrained: tag, file name, "bundled" or "random".
        weights_sha256: hash over names, types, shapes and values of the pretrained weights.
    """

    architecture: str
    pretrained: str
    weights_sha256: str


class CLIPClassifier(ImageSide):
    """Image features against text features of named classes.

    The backbone always stays in evaluation mode: CLIP has no dropout, and the BatchNorm statistics
    of its ResNets belong to the pretrained weights. All parameters start frozen; `train_only`
    chooses which ones train.

    Args:
        clip: an open_clip model (`CLIP`, `CustomTextCLIP`, ...).
        tokenizer: maps prompts to token ids (P, L).
        identity: of the weights.

    Attributes:
        class_names: names in label order; names may repeat, the label is the identity.
        zero_shot_text_features: (K, d), unit length, of the *pretrained* text tower: the anchor.
        backbone_names: names of the pretrained parameters, as `named_parameters` gives them.
        context: (n, width), the learned start of every prompt; None unless `learn_context` was
            called.
        precision: "fp32", or "bf16" for matrix products and attention in bfloat16; parameters,
            LayerNorms, the residual stream and everything after the towers stay in fp32.
        micro_batch: images whose activations are in memory at once in training; None for all.
            Otherwise images are encoded twice, first for their features, then for their gradients
            (Gao et al. 2021, arXiv 2101.06983), so that any loss over the batch is unchanged.
        recompute: store only the input of each block, and recompute the rest in the backward pass.
        warnings: what its features depend on without being certain; each run keeps them.
        compiles: run the blocks of supported towers through `torch.compile` in training.
        parts: labels at which the classes of a later stream begin. All classes are encoded and
            ranked stream by stream, so that no bit depends on the streams that follow.
    """

    zero_shot_text_features: Tensor
    context: nn.Parameter | None
    warnings: tuple[str, ...] = ()
    parts: tuple[int, ...] = ()

    def __init__(
        self,
        clip: nn.Module,
        tokenizer: Tokenizer,
        identity: ModelIdentity | None = None,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__(clip, precision)
        self.tokenizer = tokenizer
        self.identity = identity
        self.class_names: list[str] = []
        self._tokens: list[Tensor] = []  # one (templates, L) of token ids for each class
        self._text_cache: list[Tensor] | None = None
        self._along: tuple[Sequence[Tensor], list[Tensor]] | None = None
        self.register_buffer("zero_shot_text_features", torch.empty(0), persistent=False)
        self.register_parameter("context", None)
        self.backbone_names = frozenset(f"clip.{name}" for name, _ in clip.named_parameters())
        self._context_words: list[int] = []  # token ids of the words that the context replaced

    def train(self, mode: bool = True) -> "CLIPClassifier":
        """Set the mode of everything except the backbone, which stays in evaluation mode.

        It also drops all copies of weights, since a change through `.data` is not detected.
        """
        super().train(mode)
        self._towers.forget()
        self._range_checked = False
        self.clip.eval()
        return self

    @property
    def compile_seconds(self) -> float:
        """The seconds that `torch.compile` took so far."""
        return self._towers.compile_seconds

    @property
    def logit_scale(self) -> Tensor:
        """The factor on cosine similarities: a scalar, exp of the learned parameter."""
        return self.clip.logit_scale.exp()

    def add_classes(
        self, names: Sequence[str], templates: TemplatesLike = DEFAULT_TEMPLATES
    ) -> None:
        """Append classes; their labels continue the existing ones.

        Args:
            names: one name for each class.
            templates: prompts with one "{}" for the name; several form an ensemble. Or one
                such sequence per name, whose prompts may be whole, without "{}".

        Raises:
            UserError: an empty name, no template, a template without "{}", or a prompt that is too
                long for the text tower.
        """
        check_prompts(self.tokenizer, names, templates, len(self.class_names))
        if not names:
            return
        prompts = self._prompts(names, templates)
        tokens = self._with_context(prompts, names)
        with torch.no_grad(), self.pretrained_weights():
            anchors = self._stream_by_stream(prompts, len(self.class_names))
        old = self.zero_shot_text_features.to(anchors).view(-1, anchors.shape[1])
        self.zero_shot_text_features = torch.cat([old, anchors])
        self._tokens += tokens
        self.class_names += names

    def set_prompts(self, label: int, prompts: Sequence[str]) -> None:
        """Replace the prompts of a class; its features and its anchor follow.

        Args:
            label: of the class.
            prompts: whole, or with one "{}" for the name; several form an ensemble.

        Raises:
            UserError: there is none, or one is too long for the text tower.
            ValueError: the model has learned a context, which replaces prompts.
        """
        if self.context is not None:
            raise ValueError("the prompts of this model are learned")
        name = self.class_names[label]
        check_prompts(self.tokenizer, [name], [list(prompts)], label)
        (tokens,) = self._prompts([name], [list(prompts)])
        with torch.no_grad(), self.pretrained_weights():
            self.zero_shot_text_features[label] = self.encode_prompts([tokens])[0]
        self._tokens[label] = tokens
        self._towers.forget()

    def classes_until(self, label: int) -> int:
        """Return how many classes have arrived with the stream of a class, or before it."""
        return next((part for part in self.parts if part > label), len(self.class_names))

    def text_features(self, classes: Sequence[int] | None = None, normalize: bool = True) -> Tensor:
        """Encode the prompts of classes with the current weights.

        Args:
            classes: labels; default all.
            normalize: to unit length; otherwise as output by the text tower, or the mean of unit
                vectors if there are several templates.

        Returns:
            (K, d), in the order of `classes`.
        """
        labels = list(range(len(self.class_names)) if classes is None else classes)
        if not labels:
            raise ValueError("no classes to encode: call add_classes first")
        if self._along is not None:
            features = self._encode_along(labels)
        elif self._text_cache is not None:
            if not self._text_cache:
                self._text_cache.append(self._stream_by_stream(self._tokens, normalize=False))
            features = self._text_cache[0][labels]
        else:
            prompts = [self._tokens[c] for c in labels]
            features = self._towers.unchanged(
                self.clip, self.context, (self.precision, tuple(labels), len(self._tokens)),
                lambda: self.encode_prompts(prompts, normalize=False),
            )  # fmt: skip
        return F.normalize(features, dim=-1) if normalize else features

    def _stream_by_stream(
        self, prompts: Sequence[Tensor], first: int = 0, normalize: bool = True
    ) -> Tensor:
        """Encode the prompts of classes, those of each stream in passes of their own: (K, d).

        Args:
            prompts: one tensor of token ids (templates, L) per class.
            first: label of the first class.
            normalize: to unit length.
        """
        ends = [part - first for part in self.parts if 0 < part - first < len(prompts)]
        spans = pairwise([0, *ends, len(prompts)])
        features = [self.encode_prompts(prompts[start:end], normalize) for start, end in spans]
        return torch.cat(features) if ends else features[0]

    @contextlib.contextmanager
    def encoding_along(self, prompts: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Encode additional prompts in the same passes as `text_features` in a `with` block.

        Args:
            prompts: one tensor of token ids (templates, L) per name.

        Yields:
            a list; after each call of `text_features` it holds their features, (P, d), not
            normalised.
        """
        features: list[Tensor] = []
        outer, self._along = self._along, (prompts, features)
        try:
            yield features
        finally:
            self._along = outer

    def _encode_along(self, labels: list[int]) -> Tensor:
        assert self._along is not None
        prompts, collected = self._along
        both = self.encode_prompts([*(self._tokens[c] for c in labels), *prompts], normalize=False)
        features, further = both.tensor_split([len(labels)])
        collected[:] = [further]
        return features

    def encode_names(
        self, names: Sequence[str], templates: TemplatesLike = DEFAULT_TEMPLATES
    ) -> Tensor:
        """Encode names that are not classes of this model: (len(names), d), unit length."""
        return self.encode_prompts(self.tokenize(names, templates))

    @torch.no_grad()
    def zero_shot_names(self, names: Sequence[str], templates: TemplatesLike) -> Tensor:
        """Encode names as zero-shot CLIP does, without learned context words: as `encode_names`."""
        with self.pretrained_weights():
            return self.encode_prompts(self._prompts(names, templates))

    @contextlib.contextmanager
    def cached_text(self) -> Iterator[None]:
        """Encode the text only once in a `with` block, in which no weight may change."""
        outer, self._text_cache = self._text_cache, []
        try:
            yield
        finally:
            self._text_cache = outer

    def tokenize(
        self, names: Sequence[str], templates: TemplatesLike = DEFAULT_TEMPLATES
    ) -> list[Tensor]:
        """Return the token ids (templates, L) of the prompts of every name."""
        return self._with_context(self._prompts(names, templates), names)

    def _prompts(self, names: Sequence[str], templates: TemplatesLike) -> list[Tensor]:
        return tokenize(self.tokenizer, names, templates)

    def _with_context(self, prompts: list[Tensor], names: Sequence[str]) -> list[Tensor]:
        if self.context is None:
            return prompts
        return insert_context(prompts, self._context_words, len(self.context), names)

    def encode_prompts(self, tokens: Sequence[Tensor], normalize: bool = True) -> Tensor:
        """Encode one tensor of token ids (templates, L) per name: (K, d), by default unit length.

        A template ensemble is the mean of its normalised features, normalised again (Radford et
        al. 2021, section 3.1.4). Several processes share many names in a step.
        """
        if not tokens:
            raise ValueError("no prompts to encode")

        def encode(rows: slice) -> Tensor:
            own = tokens[rows]
            features = self._towers.encode_prompts(self.clip, own, self.context, self._how)
            return ensemble(features, [len(t) for t in own])

        features = divided(encode, len(tokens), least=_SHARED_FROM)
        return F.normalize(features, dim=-1) if normalize else features

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Scaled cosine similarities (B, K), plus the bias of SigLIP models."""
        logits = self.logit_scale * image_features @ text_features.T
        bias = getattr(self.clip, "logit_bias", None)
        return logits if bias is None else logits + bias

    def forward(self, images: Tensor, classes: Sequence[int] | None = None) -> Tensor:
        """Classify images among `classes` (default all): logits (B, K)."""
        image, text = self.image_features(images), self.text_features(classes)
        if not self.parts or classes is not None:
            return self.logits(image, text)
        return torch.cat([self.logits(image, rows) for rows in text.tensor_split(self.parts)], 1)
