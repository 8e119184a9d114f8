"""Methods that train another one, their host, on every task, and do more with its weights."""

from typing import Any, ClassVar, Self

from pydantic import Field

from cl_clipfit.config.options import Options
from cl_clipfit.methods.per_task import PerTaskStrategy
from cl_clipfit.training.strategy import CLIPStrategy


class HostOptions(Options):
    """Settings of methods that train another one; other settings of their label go to it."""

    host: str = Field("full", description="the method that is trained")


class HostedStrategy(CLIPStrategy):
    """Train a host on every task; `over(host)` returns the class that does it.

    `self.options` are the host's, so that its code finds its own; those of the method are in
    `self.merge`.

    Args:
        options: the method's options; default: those of `options_class`.
        host_options: the host's options; default: those of its `options_class`.
        **kwargs: as in `CLIPStrategy`; the recipe is the host's.
    """

    base_option = "host"
    host_class: ClassVar[type[CLIPStrategy]] = CLIPStrategy
    """The host, set by `over`."""
    host_is: ClassVar[str] = "continued"
    """What is done with the host, for the message that refuses it."""

    def __init__(
        self, *, options: Any = None, host_options: Options | None = None, **kwargs: Any
    ) -> None:
        self.merge: Any = options or self.options_class()
        super().__init__(options=host_options or self.host_class.options_class(), **kwargs)

    @classmethod
    def over(cls, host: type[CLIPStrategy]) -> type[Self]:
        """Return the class that trains `host`, and does with it what this class does."""
        return type(f"{cls.__name__}{host.__name__}", (cls, host), {"host_class": host})

    @classmethod
    def refuses(cls, base: type[CLIPStrategy]) -> str:
        """Return why a method cannot be the host; "" if it can."""
        if base.learning != "gradient":
            return f"trains nothing that could be {cls.host_is}"
        if issubclass(base, PerTaskStrategy) and not base.base_option:
            return "has weights of its own for each task"
        if base.head_state is not CLIPStrategy.head_state and not base.base_option:
            return "also classifies by a head that is not among the weights it trains"
        return "builds on another method itself" if base.base_option else ""
