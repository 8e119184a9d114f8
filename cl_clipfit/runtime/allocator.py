"""How the C library treats the memory of freed tensors. Imports nothing heavy: it comes first."""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt, in glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let glibc keep what tensors free for those of the next step, in huge pages where it can.

    By default it gives every large block back to the system at once, so that each step of training
    on a CPU has gigabytes mapped and cleared anew. Call it before PyTorch allocates. What the
    environment says about huge pages (THP_MEM_ALLOC_ENABLE, read by PyTorch) is left alone.

    Returns:
        whether it has an effect: on Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
