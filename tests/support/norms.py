"""Shared pieces."""

import contextlib

import numpy as np
import torch
from open_clip.transformer import LayerNorm
from torch import Tensor

from cl_clipfit.clip import CLIPClassifier


def normalised_inputs(model: CLIPClassifier, images: Tensor) -> dict[str, np.ndarray]:
    """Return the normalised inputs of every LayerNorm of an open_clip ViT, seen by hooks.

    The forward pass is open_clip's. Of the last LayerNorms of a ViT that is read at its class
    token, only class tokens are returned.

    Args:
        model: at the weights in question.
        images: (N, 3, H, W) of uint8.

    Returns:
        (rows, width) by name of the LayerNorm, in fp64.
    """
    inputs: dict[str, Tensor] = {}
    visual = model.clip.visual
    last = f"resblocks.{len(visual.transformer.resblocks) - 1}.ln_2"
    with contextlib.ExitStack() as stack, torch.no_grad():
        for name, module in visual.named_modules(prefix="clip.visual"):
            if isinstance(module, LayerNorm):

                def hook(module: LayerNorm, given: tuple[Tensor], _: Tensor, key=name) -> None:
                    inputs[key] = given[0]

                stack.enter_context(module.register_forward_hook(hook))
        model.clip.encode_image(model.preprocess(images))
    found = {}
    for name, given in inputs.items():
        x = given.double().numpy()
        if visual.pool_type == "tok" and name.endswith((last, "ln_post")):
            x = x[:, :1]
        centred = x - x.mean(-1, keepdims=True)
        normalised = centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        found[name] = normalised.reshape(-1, x.shape[-1])
    return found


def least_squares(
    inputs: list[np.ndarray], weights: list[np.ndarray], biases: list[np.ndarray],
    off_diagonal: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Fit a LayerNorm to the outputs of those of several tasks, channel by channel.

    Shrunk entries off the diagonal are those of a share of samples in which weight and bias are
    fitted separately.

    Args:
        inputs: of each task, (rows, width), normalised.
        weights: of each task, (width,).
        biases: likewise.
        off_diagonal: the factor on the entries.

    Returns:
        weight and bias, (width,).
    """
    fitted = []
    together, apart = np.sqrt(off_diagonal), np.sqrt(1 - off_diagonal)
    for channel in range(inputs[0].shape[1]):
        regressors, targets = [], []
        for rows, weight, bias in zip(inputs, weights, biases, strict=True):
            x = rows[:, channel]
            one, zero, w, b = np.ones_like(x), np.zeros_like(x), weight[channel], bias[channel]
            for scale, first, second in ((together, x, one), (apart, x, zero), (apart, zero, one)):
                regressors.append(scale * np.stack([first, second], 1))
                targets.append(scale * (first * w + second * b))
        solution, *_ = np.linalg.lstsq(np.concatenate(regressors), np.concatenate(targets))
        fitted.append(solution)
    return tuple(np.stack(fitted, 1))
