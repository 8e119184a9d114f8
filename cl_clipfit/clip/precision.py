"""Which arithmetic the towers compute in: fp32, or bfloat16 where the hardware multiplies it."""

import re
from pathlib import Path

import torch
from torch import nn

from cl_clipfit.clip.classifier import Precision
from cl_clipfit.errors import UserError
from cl_clipfit.runtime.progress import Progress

AUTO = "auto"
WIDE = 384  # width of an image tower from which on bf16 pays
_CPUINFO = Path("/proc/cpuinfo")
_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # Intel and AMD, Intel, ARM


def resolve_precision(name: str, device: torch.device, width: int | None) -> Precision:
    """Turn `--precision` into an arithmetic; `auto` goes by what the hardware has, never by time.

    Args:
        name: "fp32", "bf16" or "auto".
        device: where the model computes.
        width: of the image tower, None where unknown. Under "auto" one below `WIDE` stays at fp32:
            it gains nothing, and its numbers stay the same on every machine.

    Raises:
        UserError: bf16 on a device that is not known to compute it.
    """
    if name == AUTO:
        wide = width is None or width >= WIDE
        return "bf16" if wide and has_bf16(device) else "fp32"
    if name == "fp32":
        return "fp32"
    if device.type not in ("cpu", "cuda"):
        raise UserError(
            f"--precision bf16 is not offered on {device.type}: choose --device cpu, or"
            " --precision fp32 to train"
        )
    return "bf16"


def has_bf16(device: torch.device) -> bool:
    """Tell whether a device multiplies bfloat16 in hardware; others do it in software, slowly."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool(_CPU_FLAGS & processor_flags())


def processor_flags() -> frozenset[str]:
    """Return what Linux says the processor can do; nothing on other systems."""
    # The functions of torch.cpu for this are private and differ from version to version.
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(match[1].split()) if match else frozenset()


def tower_width(clip: nn.Module) -> int | None:
    """Return the width of the image transformer of an open_clip model; None of other towers."""
    transformer = getattr(getattr(clip, "visual", None), "transformer", None)
    return getattr(transformer, "width", None)


def announce_precision(
    name: str, precision: Precision, device: torch.device, display: Progress
) -> None:
    """Say in one line that the towers compute in bf16: chosen by `auto`, asked for, or slow.

    Args:
        name: what was asked for.
        precision: what it was resolved to.
        device: where the model computes.
        display: told about it.
    """
    if precision == "fp32":
        return
    processor = "GPU" if device.type == "cuda" else "processor"
    if not has_bf16(device):
        display.warn(f"precision: bf16 in software, slowly: this {processor} cannot multiply it")
    elif name == AUTO:
        display.note(
            f"precision: bf16 (the {processor} multiplies bfloat16 in hardware;"
            " --precision fp32 for exact numbers)"
        )
    else:
        display.note("precision: bf16")
