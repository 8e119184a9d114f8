"""The precision of the towers: fp32, or bfloat16 if the hardware supports it."""

import re
from pathlib import Path

import torch
from torch import nn

from cl_clipfit.clip.classifier import Precision
from cl_clipfit.errors import UserError
from cl_clipfit.runtime.progress import Progress

AUTO = "auto"
WIDE = 384  # width of an image tower from which bf16 pays off
_CPUINFO = Path("/proc/cpuinfo")
_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # Intel and AMD, Intel, ARM


def resolve_precision(name: str, device: torch.device, width: int | None) -> Precision:
    """Resolve `--precision`; `auto` depends on the hardware, never on measured time.

    Args:
        name: "fp32", "bf16" or "auto".
        device: where the model computes.
        width: of the image tower, None if unknown. With "auto", a tower narrower than `WIDE` uses
            fp32: bf16 gains nothing, and the results stay the same on every machine.

    Raises:
        UserError: bf16 on a device other than CPU or CUDA.
    """
    if name == AUTO:
        wide = width is None or width >= WIDE
        return "bf16" if wide and has_bf16(device) else "fp32"
    if name == "fp32":
        return "fp32"
    if device.type not in ("cpu", "cuda"):
        raise UserError(
            f"--precision bf16 is not supported on {device.type}: choose --device cpu, or"
            " --precision fp32 to train"
        )
    return "bf16"


def has_bf16(device: torch.device) -> bool:
    """Return whether a device has hardware for bfloat16; others emulate it, slowly."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool(_CPU_FLAGS & processor_flags())


def processor_flags() -> frozenset[str]:
    """Return the feature flags of the CPU as Linux reports them; empty on other systems."""
    # The functions of torch.cpu for this are private and differ from version to version.
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(match[1].split()) if match else frozenset()


def tower_width(clip: nn.Module) -> int | None:
    """Return the width of the image transformer of an open_clip model; None for other towers."""
    transformer = getattr(getattr(clip, "visual", None), "transformer", None)
    return getattr(transformer, "width", None)


def announce_precision(
    name: str, precision: Precision, device: torch.device, display: Progress
) -> None:
    """Report in one line that the towers compute in bf16: by `auto`, on request, or emulated.

    Args:
        name: the requested precision.
        precision: the resolved precision.
        device: where the model computes.
        display: receives the line.
    """
    if precision == "fp32":
        return
    processor = "GPU" if device.type == "cuda" else "CPU"
    if not has_bf16(device):
        display.warn(
            f"precision: bf16 is emulated, slowly: this {processor} has no hardware for it"
        )
    elif name == AUTO:
        display.note(
            f"precision: bf16 (the {processor} supports bfloat16 in hardware;"
            " --precision fp32 for exact numbers)"
        )
    else:
        display.note("precision: bf16")
