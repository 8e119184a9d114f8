"""Seeds, exact fp32, and `--deterministic`: only kernels that give the same bits again."""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from cl_clipfit.errors import UserError

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_CUBLAS_VALUES = (":4096:8", ":16:8")  # values for which cuBLAS guarantees bitwise reproducibility
_REMEDY = "omit --deterministic, or use --device cpu"


@dataclass(frozen=True)
class Seeds:
    """What a method seeds generators of its own with.

    Attributes:
        data: of data order, crops and other draws of training.
        init: of the values that new parameters start at.
    """

    data: int
    init: int

    @classmethod
    def of_torch(cls) -> "Seeds":
        """Return the seed of PyTorch's default generator, for both."""
        return cls(torch.initial_seed(), torch.initial_seed())


@contextlib.contextmanager
def exact_fp32() -> Iterator[None]:
    """Make fp32 mean fp32 for a `with` block or a function.

    By default, convolutions on a GPU round their inputs to TF32.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32, matmul.allow_tf32 = False, False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


@contextlib.contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Compute in exact fp32 in a `with` block, and if `on`, with deterministic kernels only.

    Enter it before anything is computed on a GPU: cuBLAS reads its setting once. Results are
    reproducible on one machine, with one version of PyTorch and one number of threads.

    Args:
        on: whether to restrict PyTorch to deterministic kernels.

    Raises:
        UserError: an operation has no deterministic kernel.
    """
    with exact_fp32(), _deterministic_kernels() if on else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _deterministic_kernels() -> Iterator[None]:
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
