"""Avalanche: any method with one of Avalanche's own plug-ins, as avalanche:replay."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from cl_clipfit import (
    Count,
    HostedStrategy,
    NotNegative,
    Options,
    Share,
    stock_arguments,
    stock_images,
    stock_plugin,
)

NAME = "avalanche"
GROUP = "replay"
PAPER = "Carta et al. 2023, arXiv 2302.01766 (JMLR); Avalanche 0.6"
NEEDS = "what its plug-in keeps, and what its host keeps"
EXEMPLARS = "exemplars"
WORD = "plugin"
_OF_HOST = ("host", "plugin")


class AvalancheOptions(Options):
    """Settings of Avalanche's plug-ins; other settings of its label go to the host."""

    plugin: str = Field("replay", description="name of a plug-in, which may follow the colon")
    host: str = Field("full", description="the method that is trained with it")
    mem_size: Count | None = Field(None, description="of replay, gdumb: images in all")
    batch_size_mem: Count | None = Field(None, description="of replay: old images per step")
    patterns_per_experience: Count | None = Field(
        None, description="of agem, gem: images of each task"
    )
    sample_size: Count | None = Field(None, description="of agem: images per reference gradient")
    memory_strength: NotNegative | None = Field(None, description="of gem")
    ewc_lambda: NotNegative | None = Field(None, description="of ewc, rwalk: weight of the penalty")
    mode: Literal["separate", "online"] | None = Field(None, description="of ewc")
    decay_factor: Share | None = Field(None, description="of ewc with mode=online")
    ewc_alpha: Share | None = Field(None, description="of rwalk: share of new importances")
    delta_t: Count | None = Field(None, description="of rwalk: steps between scores")
    lambda_reg: NotNegative | None = Field(None, description="of mas: weight of the penalty")
    alpha: Share | None = Field(None, description="of mas: share of old importances")

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the plug-in; raises as `stock_arguments`."""
        return stock_arguments(self.plugin, self.model_dump(exclude={*_OF_HOST}))

    @property
    def exemplars(self) -> int | str:
        """Return how many images of old tasks the plug-in keeps."""
        return stock_images(self.plugin, self.arguments)

    @model_validator(mode="after")
    def _check_plugin(self) -> "AvalancheOptions":
        """Refuse a plug-in that does not run on CLIP, and arguments of another one."""
        _ = self.arguments
        return self


class WithPlugin(HostedStrategy):
    """Train a host with a plug-in of Avalanche; the loss ranks all classes seen.

    docs/avalanche-plugins.md lists those that run, and why others do not. No checkpoint holds the
    state of a plug-in, so that a run that was stopped is not resumed but repeated.
    """

    options_class = AvalancheOptions
    host_is = "trained with a plug-in"
    resumes = False

    def __init__(
        self, *, options: Any = None, plugins: Sequence[Any] | None = None, **kwargs: Any
    ) -> None:
        options = options or self.options_class()
        added = stock_plugin(options.plugin, options.arguments)
        super().__init__(options=options, plugins=[*(plugins or ()), added], **kwargs)

    def label_space(self) -> Sequence[int]:
        """Return all classes seen: plug-ins mix old images into a batch, or read old logits."""
        return self.seen_classes
