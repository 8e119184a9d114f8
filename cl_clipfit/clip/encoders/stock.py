"""Detect modules without hooks or replaced methods, which may be computed in another way."""

from torch import nn

QUICK = 1.702  # constant of QuickGELU, x * sigmoid(1.702 x)


def plain(module: nn.Module, kind: type) -> bool:
    """Return whether a module is exactly of this class, without hooks or a replaced forward."""
    hooked = (
        module._forward_hooks or module._forward_pre_hooks
        or module._backward_hooks or module._backward_pre_hooks
    )  # fmt: skip
    return type(module) is kind and not hooked and "forward" not in vars(module)


def plain_norm(module: nn.Module) -> bool:
    """Return whether a module is a plain LayerNorm of PyTorch or open_clip, without hooks."""
    from open_clip.transformer import LayerNorm, LayerNormFp32

    return any(plain(module, kind) for kind in (LayerNorm, LayerNormFp32, nn.LayerNorm))
