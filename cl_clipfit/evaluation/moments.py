"""Moments of the normalised inputs of LayerNorms, from which `merging.regmean` merges them."""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_clipfit.merging.regression import Moments
from cl_clipfit.runtime.processes import alone

if TYPE_CHECKING:
    from cl_clipfit.training.strategy import CLIPStrategy

# In torch, open_clip and timm; LayerNorms of other names permute channels.
_CHANNELS_LAST = ("LayerNorm", "LayerNormFp32")


@torch.no_grad()
def norm_moments(strategy: "CLIPStrategy", images: Tensor, count: int) -> Moments:
    """Return the moments of the image tower's trained LayerNorms at the current weights.

    They are means over images and tokens. In an open_clip ViT that is read at its class token,
    these are class tokens alone for the last LayerNorms: the pass computes no others.

    Args:
        strategy: provides the model, the selection and the batches.
        images: (N, 3, H, W), a sample of the task's training images; not encoded if the selection
            holds no weight and bias of a LayerNorm.
        count: number of all training images of the task.
    """
    norms = _trained_norms(strategy)
    totals = dict.fromkeys(norms, torch.zeros((), dtype=torch.float64))
    batch_means: dict[str, Tensor] = {}

    def encode(batch: Tensor) -> Tensor:
        strategy.model.image_features(batch)
        for name, means in batch_means.items():  # not in the hooks: memory may run out in a pass
            totals[name] = totals[name] + means.cpu().double() * len(batch)
        return batch.new_empty(len(batch), 0)

    if norms:
        with contextlib.ExitStack() as hooks:
            for name, module in norms.items():
                # The fast encoders call a LayerNorm that has hooks instead of computing it.
                hooks.enter_context(module.register_forward_hook(_writer(batch_means, name)))
            with alone():  # the sums are of all images, in every process
                strategy.in_batches(encode, images)
    moments = {name: (total / len(images)).float() for name, total in totals.items()}
    return Moments(
        count,
        {name: means for name, (means, _) in moments.items()},
        {name: squares for name, (_, squares) in moments.items()},
    )


def _trained_norms(strategy: "CLIPStrategy") -> dict[str, Any]:
    """Return the image tower's LayerNorms whose weight and bias are selected, by name."""
    modules = strategy.model.clip.visual.named_modules(prefix="clip.visual")
    return {
        name: module
        for name, module in modules
        if type(module).__name__ in _CHANNELS_LAST
        and {f"{name}.weight", f"{name}.bias"} <= strategy.selection.keys()
    }


def _writer(means: dict[str, Tensor], name: str) -> Callable[..., None]:
    """Return a hook that writes the means of xhat and of its square, (2, *shape), under a name."""

    def hook(module: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        shape = module.normalized_shape
        normalised = F.layer_norm(inputs[0].float(), shape, eps=module.eps).reshape(-1, *shape)
        means[name] = torch.stack([normalised.mean(0), normalised.square().mean(0)])

    return hook
