"""How the C library treats the memory of freed tensors. Loaded first: it imports nothing heavy."""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # mallopt parameters, from glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let glibc keep the memory of freed tensors for the next step, in huge pages if possible.

    By default, glibc returns every large block to the system immediately, so that each training
    step on a CPU maps and clears gigabytes again. Call this before PyTorch allocates memory. An
    existing value of THP_MEM_ALLOC_ENABLE (huge pages, read by PyTorch) is kept.

    Returns:
        whether it has an effect, which requires Linux and glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
