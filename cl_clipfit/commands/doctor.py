"""`run.py doctor`: what a bug report should say about the machine, and what is at hand offline."""

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from rich.console import Console
from rich.filesize import decimal

from cl_clipfit.clip.precision import resolve_precision
from cl_clipfit.data.fetch.download import cache_folder
from cl_clipfit.data.images.decode import THREADS
from cl_clipfit.report.display import say
from cl_clipfit.runtime.device import describe_environment, resolve_device

_HUB, _SECONDS = "huggingface.co", 3.0
_WIDE = 768  # of the towers of ViT-B/16


def doctor(out: Console) -> None:
    """Print versions, hardware, precision, caches, disk space and whether the hub is reachable."""
    for name, value in _findings():
        say(out, f"{name:<19}{value}")


def _findings() -> Iterator[tuple[str, str]]:
    device = resolve_device("auto")
    for name, value in describe_environment(device).items():
        yield name, str(value)
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    precision = resolve_precision("auto", device, _WIDE)
    yield "cores", f"{THREADS} usable of {os.cpu_count()}"
    yield "gpus", ", ".join(gpus) or "none"
    yield "precision", f"{precision} for ViT-B/16, with --precision auto"
    yield "data", _folder(cache_folder())
    yield "models", _folder(Path(HF_HUB_CACHE))
    runs = Path("runs")
    yield "runs", _folder(runs) if runs.is_dir() else "no folder of this name here"
    yield "network", f"{_HUB} is {'reachable' if _reachable(_HUB) else 'not reachable'}"


def _folder(folder: Path) -> str:
    """Return a folder's path, what it holds, and the space that is left on its disk."""
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = f"{decimal(shutil.disk_usage(place).free)} free"
    if not folder.is_dir():
        return f"{folder} (not there yet; {free})"
    held = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    names = ", ".join(held[:5]) + (", ..." if len(held) > 5 else "")
    return f"{folder} ({names or 'empty'}; {free})"


def _reachable(host: str) -> bool:
    try:
        with socket.create_connection((host, 443), timeout=_SECONDS):
            return True
    except OSError:
        return False
