"""Errors of a data loader's worker processes arrive as they were raised, not as a traceback."""

import sys
from typing import Any

from torch._utils import ExceptionWrapper
from torch.utils.data._utils import worker

from cl_clipfit.errors import UserError


class _Wrapper(ExceptionWrapper):
    """What a worker sends in place of an exception; of a `UserError`, its message and reason.

    PyTorch sends a type and a text alone, and raises that type with a traceback as its message.
    """

    def __init__(self, exc_info: Any = None, where: str = "in background") -> None:
        super().__init__(exc_info, where)
        error = (exc_info or sys.exc_info())[1]
        self.told = (str(error), error.reason) if isinstance(error, UserError) else None

    def reraise(self) -> None:
        """Raise the error in the process that loads."""
        if self.told is None:
            super().reraise()
            return
        message, reason = self.told
        raise UserError(message, reason=reason) from RuntimeError(self.exc_msg)


def send_errors_whole() -> None:
    """Let this worker process send a `UserError` with its own message; call it in the worker."""
    worker.ExceptionWrapper = _Wrapper  # type: ignore[misc]
