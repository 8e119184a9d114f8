"""Which modules do what their class says, and may be computed in another way."""

from torch import nn

QUICK = 1.702  # of QuickGELU, x * sigmoid(1.702 x)


def plain(module: nn.Module, kind: type) -> bool:
    """Tell whether a module is exactly of this class, with nothing hooked to it or replaced."""
    hooked = (
        module._forward_hooks or module._forward_pre_hooks
        or module._backward_hooks or module._backward_pre_hooks
    )  # fmt: skip
    return type(module) is kind and not hooked and "forward" not in vars(module)


def plain_norm(module: nn.Module) -> bool:
    """Tell whether a module is a LayerNorm, of PyTorch or open_clip, with nothing hooked to it."""
    from open_clip.transformer import LayerNorm, LayerNormFp32

    return any(plain(module, kind) for kind in (LayerNorm, LayerNormFp32, nn.LayerNorm))
