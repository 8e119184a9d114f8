"""`--deterministic`: use only deterministic kernels, and report an operation that has none."""

import contextlib
import os
import re
from collections.abc import Iterator

import torch

from cl_clipfit.errors import UserError

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_CUBLAS_VALUES = (":4096:8", ":16:8")  # values for which cuBLAS guarantees bitwise reproducibility
_REMEDY = "omit --deterministic, or use --device cpu"


@contextlib.contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Restrict PyTorch to deterministic kernels in a `with` block; do nothing if `on` is false.

    Enter it before anything is computed on a GPU: cuBLAS reads its setting once. Results are
    reproducible on one machine, with one version of PyTorch and one number of threads.

    Args:
        on: whether to restrict PyTorch.

    Raises:
        UserError: an operation has no deterministic kernel.
    """
    if not on:
        yield
        return
    cudnn = torch.backends.cudnn
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    flags, workspace = (cudnn.deterministic, cudnn.benchmark), os.environ.get(_CUBLAS)
    if workspace not in _CUBLAS_VALUES:
        os.environ[_CUBLAS] = _CUBLAS_VALUES[0]
    cudnn.deterministic, cudnn.benchmark = True, False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if text := explain_nondeterminism(error):
            raise UserError(text) from error
        raise
    finally:
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        cudnn.deterministic, cudnn.benchmark = flags
        if workspace is None:
            os.environ.pop(_CUBLAS, None)
        else:
            os.environ[_CUBLAS] = workspace


def explain_nondeterminism(error: BaseException) -> str | None:
    """Return a message that names the operation without a deterministic kernel, or None.

    Example:
        >>> error = RuntimeError("put_ does not have a deterministic implementation, but you set")
        >>> explain_nondeterminism(error)[:47]
        '--deterministic: put_ has no deterministic kern'
        >>> explain_nondeterminism(RuntimeError("mat1 and mat2 do not fit"))
    """
    text = str(error)
    if not isinstance(error, RuntimeError):
        return None
    if match := re.search(r"(\S.*?) does not have a deterministic implementation", text):
        operation = match[1].rpartition("Error: ")[2].strip("`'\" ")
        return f"--deterministic: {operation} has no deterministic kernel here: {_REMEDY}"
    if _CUBLAS in text and "not deterministic" in text:
        return (
            f"--deterministic: cuBLAS was initialised without it on this GPU: {_REMEDY}, or set"
            f" {_CUBLAS}={_CUBLAS_VALUES[0]} before the program starts"
        )
    return None
