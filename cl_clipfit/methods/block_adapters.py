"""Methods that train modules beside the blocks of both towers, which no weight can express."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cl_clipfit.clip.encoders.adapters import BlockAdapter, attach_adapters, block_widths
from cl_clipfit.training.strategy import CLIPStrategy


class BlockAdapterStrategy(CLIPStrategy):
    """Train the adapters that `new_adapters` returns; at their start, they put out nothing.

    Raises:
        UserError: the model's towers are not those that the fast encoders support.
        ValueError: the model has adapters already.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        clip = self.model.clip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seeds.init)
            self.adapters = self.new_adapters(*block_widths(clip))
        attach_adapters(clip, *self.adapters)
        for tower in self.adapters:
            for adapter in tower:
                adapter.to(self.device).requires_grad_(False).eval()

    @abstractmethod
    def new_adapters(
        self, image: list[int], words: list[int]
    ) -> tuple[Sequence[BlockAdapter], Sequence[BlockAdapter]]:
        """Return the adapters of the last blocks of the image tower, and of the text tower.

        PyTorch's default generator has the seed of new parameters.

        Args:
            image: the width of every block of the image tower.
            words: the same of the text tower.
        """

    def trainable(self) -> Iterable[nn.Parameter]:
        """Return the parameters of all adapters; the towers may share some."""
        adapters = (adapter for tower in self.adapters for adapter in tower)
        return dict.fromkeys(p for adapter in adapters for p in adapter.parameters())

    def zero_shot_point(self) -> dict[str, Tensor]:
        """Return the values at the start."""
        return {name: self.model.pretrained_values[name] for name in self.selection}
