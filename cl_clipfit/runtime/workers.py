"""Pass a `UserError` of a data loader's worker process on with its original message."""

import sys
from typing import Any

from torch._utils import ExceptionWrapper
from torch.utils.data._utils import worker

from cl_clipfit.errors import UserError


class _Wrapper(ExceptionWrapper):
    """What a worker sends for an exception; it keeps the message and reason of a `UserError`.

    PyTorch's sends only a type and a text, and raises that type with the traceback as its message.
    """

    def __init__(self, exc_info: Any = None, where: str = "in background") -> None:
        super().__init__(exc_info, where)
        error = (exc_info or sys.exc_info())[1]
        self.user_error = (str(error), error.reason) if isinstance(error, UserError) else None

    def reraise(self) -> None:
        """Raise the error in the main process."""
        if self.user_error is None:
            super().reraise()
            return
        message, reason = self.user_error
        raise UserError(message, reason=reason) from RuntimeError(self.exc_msg)


def send_errors_whole() -> None:
    """Let this worker process, which calls it, send a `UserError` with its original message."""
    worker.ExceptionWrapper = _Wrapper  # type: ignore[misc]
