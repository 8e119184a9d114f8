"""The environment of a run: device, versions, memory."""

import contextlib
import importlib.metadata
import platform
import re
import resource
from pathlib import Path
from typing import Any

import torch

from cl_clipfit.errors import UserError
from cl_clipfit.runtime import launch
from cl_clipfit.runtime.code_files import package_hash

_PACKAGES = ("torch", "torchvision", "open_clip_torch", "avalanche-lib", "numpy", "scikit-learn")


def resolve_device(name: str) -> torch.device:
    """Resolve `--device`; `auto` takes the first CUDA device if there is one, else the CPU.

    Of several processes, each takes a GPU of its own.

    Raises:
        UserError: this machine does not have the device, or several processes are to share one.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    several = launch.place().world > 1
    if several and (device.type == "mps" or device.index is not None):
        raise UserError(f"--device {name}: several processes cannot share it: use cpu or cuda")
    if several and device.type == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", own_gpu())
    available = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }[device.type]
    if (device.index or 0) >= available:
        raise UserError(
            f"--device {name}: this machine has {available or 'no'} {device.type} device(s)"
        )
    return device


def own_gpu() -> int:
    """Return the number of this process's GPU: its own on the machine.

    Raises:
        UserError: the machine has fewer GPUs than processes.
    """
    place, count = launch.declared(), torch.cuda.device_count()
    if place.here > count:
        raise UserError(
            f"{place.here} processes on a machine with {count} GPU(s): use --nproc-per-node"
            f" {count}, or --device cpu"
        )
    return place.local


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return versions and hardware, without user, host or folder names."""
    from cl_clipfit import __version__

    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "cl_clipfit": __version__,
        "cl_clipfit_sha256": package_hash(),
        "python": platform.python_version(),
        **versions,
        "system": platform.system(),
        "device": str(device),
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        **({"processes": launch.place().world} if launch.place().world > 1 else {}),
    }


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak memory: of the GPU, or of this process if the system supports it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    # Elsewhere than on Linux, or without permission, the peak is that of the process so far.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak since the last reset: GPU memory, or this process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
        if match := re.search(r"VmHWM:\s+(\d+) kB", status):
            return int(match[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024
