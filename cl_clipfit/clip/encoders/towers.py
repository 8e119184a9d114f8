"""Run a model's towers: with the fast encoders if supported, otherwise with open_clip."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import WeakIdKeyDictionary

from cl_clipfit.clip.context import context_in_place
from cl_clipfit.clip.encoders import text, vision
from cl_clipfit.clip.encoders.blocks import Arithmetic, WeightCopies
from cl_clipfit.clip.encoders.compiled import CompiledBlock
from cl_clipfit.clip.encoders.packing import Packed, pack, to_device

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Pass:
    """How the towers compute.

    Attributes:
        precision: of the matrix products.
        recompute: store less for the backward pass; see `Arithmetic.run`.
        compile: run the blocks through `torch.compile` if gradients are needed.
    """

    precision: Precision = "fp32"
    recompute: bool = False
    compile: bool = False


TEXT_PART = 8192  # tokens encoded at once
_FULL_LENGTH_PART = 256  # prompts encoded at once if they are not packed
_PLANS = 8  # cached packed sets of prompts
_log = logging.getLogger(__name__)


class Towers:
    """The encoders of a model, with copies of its weights and its packed prompts.

    A deep copy starts empty. Nothing here is part of the model's state.
    """

    def __init__(self) -> None:
        self._copies = WeightCopies(), WeightCopies()
        self._plans: dict[Any, tuple[Sequence[Tensor], list[Packed], Tensor]] = {}
        self._ids: Any = WeakIdKeyDictionary()  # token ids of a tensor, as lists
        self._unchanged: tuple[list[Tensor | None], Any, Tensor] | None = None
        self._compiled = CompiledBlock()
        self._logged: set[str] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Towers":
        return Towers()

    def __reduce__(self) -> tuple[type["Towers"], tuple[()]]:
        return Towers, ()

    def knows_image(self, clip: nn.Module) -> bool:
        """Return whether the fast encoder supports the image tower."""
        from open_clip.model import CLIP, CustomTextCLIP

        stock = type(clip) in (CLIP, CustomTextCLIP) and "encode_image" not in vars(clip)
        return stock and vision.known_tower(clip.visual)  # type: ignore[arg-type]

    def embed(self, clip: Any, images: Tensor, how: Pass) -> Tensor:
        """Return the embedded patches of a tower that `knows_image`: (B, N, width)."""
        return vision.embed_patches(clip.visual, images, self._arithmetic(0, how))

    def encode_embedded(self, clip: Any, embedded: Tensor, how: Pass) -> Tensor:
        """Encode the output of `embed`: (B, d), not normalised."""
        arithmetic = self._arithmetic(0, how)
        return vision.encode_embedded(clip.visual, embedded, arithmetic, how.recompute)

    def encode_images(self, clip: Any, images: Tensor, how: Pass) -> Tensor:
        """Encode preprocessed images (B, 3, H, W): (B, d), not normalised."""
        if self.knows_image(clip):
            return self.encode_embedded(clip, self.embed(clip, images, how), how)
        if how.compile:
            self._log_once(
                "--compile: this image tower is not an open_clip ViT and is not compiled"
            )
        with _autocast(images.device, how.precision):
            if how.recompute and torch.is_grad_enabled():
                features = checkpoint(clip.encode_image, images, use_reentrant=False)
            else:
                features = clip.encode_image(images)
        return features.float() if how.precision == "bf16" else features

    def encode_with_tokens(
        self, clip: Any, images: Tensor, count: int, how: Pass
    ) -> tuple[Tensor, Tensor]:
        """Encode images with a tower that `knows_image`; see `vision.encode_with_tokens`."""
        arithmetic = self._arithmetic(0, how)
        embedded = vision.embed_patches(clip.visual, images, arithmetic)
        return vision.encode_with_tokens(clip.visual, embedded, arithmetic, count)

    def encode_prompts(
        self, clip: Any, prompts: Sequence[Tensor], context: Tensor | None, how: Pass
    ) -> Tensor:
        """Encode prompts, each entry (n, L) of token ids: (P, d), not normalised.

        Args:
            clip: the model.
            prompts: token ids; the same tensor objects are packed only once.
            context: learned words; see `clip.context`.
            how: see `Pass`.
        """
        if not text.known_tower(clip):
            return self._encode_full_length(clip, prompts, context, how)
        parts, order = self._packed(clip, prompts)
        arithmetic = self._arithmetic(1, how)
        again = torch.is_grad_enabled() and len(parts) > 1
        features = []
        for packed in parts:
            inputs = clip, packed, arithmetic, context
            if again:  # store the activations of one part at a time
                features.append(
                    checkpoint(text.encode_packed, *inputs, how.recompute, use_reentrant=False)
                )
            else:
                features.append(text.encode_packed(*inputs, how.recompute))
        return torch.cat(features)[order]

    @property
    def compile_seconds(self) -> float:
        """The seconds that `torch.compile` took so far."""
        return self._compiled.seconds

    def forget(self) -> None:
        """Drop everything derived from the weights; it is recomputed when needed."""
        self._copies = WeightCopies(), WeightCopies()
        self._unchanged = None

    def unchanged(
        self, clip: Any, context: Tensor | None, state: Any, make: Callable[[], Tensor]
    ) -> Tensor:
        """Return the text features from `make`, or a copy of the last ones if nothing changed.

        Args:
            clip: the model; if its text tower is trainable or not supported, the features are
                always recomputed.
            context: learned words, which may be trainable.
            state: what the features depend on other than modules and weights.
            make: encodes the text.
        """
        weights = [*self.text_weights(clip), context]
        trained = any(p is not None and p.requires_grad for p in weights)
        if trained or not text.known_tower(clip):
            self._unchanged = None  # fused optimisers change weights but not their versions
            return make()
        # A weight changes in place, which increments its version, or is replaced by another tensor.
        state = state, [id(m) for m in getattr(clip, "text", clip).modules()]
        versions = [(p.device, p._version) for p in weights if p is not None]
        cached = self._unchanged
        if cached is not None and cached[1] == (state, versions):
            identical = all(a is b for a, b in zip(cached[0], weights, strict=True))
            if identical:
                return cached[2].clone()
        made = make()
        self._unchanged = weights, (state, versions), made.clone()
        return made

    def text_weights(self, clip: nn.Module) -> list[nn.Parameter]:
        """Return the parameters of the text tower, with those that both towers share."""
        visual = {id(p) for p in clip.visual.parameters()}  # type: ignore[union-attr]
        tower: Any = getattr(clip, "text", clip)
        blocks = getattr(getattr(tower, "transformer", None), "resblocks", ())
        shared = {id(p) for b in blocks for p in b.parameters()} & visual
        return [p for p in clip.parameters() if id(p) not in visual or id(p) in shared]

    def tokens(self, clip: Any, prompts: Sequence[Tensor]) -> int:
        """Return the number of tokens that a pass over these prompts encodes."""
        if not text.known_tower(clip):
            return sum(t.numel() for t in prompts)
        return sum(len(part) for part in self._packed(clip, prompts)[0])

    def _packed(self, clip: Any, prompts: Sequence[Tensor]) -> tuple[list[Packed], Tensor]:
        """Return packed parts, on the model's device, and the index of each prompt among them."""
        device = clip.logit_scale.device
        key = device, *map(id, prompts)
        if key not in self._plans:
            ids = [row for tokens in prompts for row in self._rows(clip, tokens)]
            with torch.inference_mode(False):  # they are also used in training
                parts, order = pack(ids, TEXT_PART)
                parts = [part.to(device) for part in parts]
                order = to_device(order, device)
            while len(self._plans) >= _PLANS:
                del self._plans[next(iter(self._plans))]
            # Keep a reference to the prompts: ids of deleted objects are reused.
            self._plans[key] = list(prompts), parts, order
        _, parts, order = self._plans[key]
        return parts, order

    def _rows(self, clip: nn.Module, tokens: Tensor) -> list[list[int]]:
        """Return the token ids of prompts (n, L), each up to its end token."""
        if tokens not in self._ids:
            ends = text.end_positions(clip, tokens).tolist()
            pairs = zip(tokens.tolist(), ends, strict=True)
            self._ids[tokens] = [row[: end + 1] for row, end in pairs]
        return self._ids[tokens]

    def _encode_full_length(
        self, clip: Any, prompts: Sequence[Tensor], context: Tensor | None, how: Pass
    ) -> Tensor:
        self._log_once(
            "this text tower is not a causal one of open_clip: prompts are encoded at full length"
        )
        tokens = torch.cat(list(prompts)).to(clip.logit_scale.device)
        parts = tokens.split(_FULL_LENGTH_PART)

        def encode(chunk: Tensor) -> Tensor:
            with context_in_place(clip, context), _autocast(chunk.device, how.precision):
                features = clip.encode_text(chunk)
            return features.float() if how.precision == "bf16" else features

        again = torch.is_grad_enabled() and (how.recompute or len(parts) > 1)
        return torch.cat(
            [checkpoint(encode, p, use_reentrant=False) if again else encode(p) for p in parts]
        )

    def _arithmetic(self, tower: int, how: Pass) -> Arithmetic:
        dtype = torch.bfloat16 if how.precision == "bf16" else torch.float32
        compiled = self._compiled if how.compile and torch.is_grad_enabled() else None
        return Arithmetic(self._copies[tower], dtype, compiled)

    def _log_once(self, message: str) -> None:
        """Log a line once."""
        if message not in self._logged:
            self._logged.add(message)
            _log.info(message)


def _autocast(device: torch.device, precision: Precision) -> Any:
    """Return a context in which open_clip's forward computes in a precision."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
