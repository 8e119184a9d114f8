"""SSF: a scale and a shift per channel after every operation of the image tower, folded in."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from cl_clipfit import FactoredStrategy, ScopeOptions, UserError

NAME = "ssf"
GROUP = "scaling and low rank"
PAPER = "Lian et al. 2022, arXiv 2210.08823 (NeurIPS)"
NEEDS = "nothing of earlier tasks"
RECIPE = {"lr": 1e-3}  # how it was chosen: docs/results/defaults.md
PUBLISHED = {  # without the moving average of the weights
    "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 32, "epochs": 100,
    "schedule": "cosine", "warmup_epochs": 10,
}  # fmt: skip

_EMBEDDING = "clip.visual.conv1.weight"


class Ssf(FactoredStrategy):
    """Cross-entropy; y = scale * x + shift after an operation: 207,360 parameters on ViT-B/16.

    The operations are the patch embedding, every LayerNorm and every linear layer of the blocks.
    The weights always hold both, folded in: rows of a weight are scaled, a bias is scaled
    and shifted; the patch embedding, which has no bias, shifts the positions of the patches. The
    published scales start near 1, at N(1, 0.02), and would change the model before the first step
    of every task; here they start at 1 and shifts at 0, which is zero-shot CLIP.

    Raises:
        UserError: the image tower is not a ViT of open_clip.
    """

    options_class = ScopeOptions
    options: ScopeOptions

    def _sites(self) -> dict[str, str]:
        """Return the names of weights that are scaled, and where the shift after each one goes."""
        visual = self.model.clip.visual
        if not hasattr(visual, "transformer") or visual.conv1.bias is not None:
            raise UserError("ssf folds its scales into a ViT of open_clip: choose such a model")
        sites = {_EMBEDDING: "clip.visual.positional_embedding"}
        for name, module in visual.named_modules(prefix="clip.visual"):
            if isinstance(module, nn.MultiheadAttention):
                sites[f"{name}.in_proj_weight"] = f"{name}.in_proj_bias"
            elif isinstance(module, nn.LayerNorm | nn.Linear):
                sites[f"{name}.weight"] = f"{name}.bias"
        return sites

    def trainable(self) -> Iterable[nn.Parameter]:
        """Return the weights and biases that scales and shifts are folded into."""
        return [self.model.get_parameter(n) for pair in self._sites().items() for n in pair]

    def new_factors(self, base: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a scale of 1 and a shift of 0 for every output channel."""
        factors: dict[str, Tensor] = {}
        for name in self._sites():
            channels = base[name].new_ones(len(base[name]))
            factors |= {f"{name}.scale": channels, f"{name}.shift": torch.zeros_like(channels)}
        return factors

    def compose(
        self, base: Mapping[str, Tensor], factors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Fold scales and shifts into the weights."""
        folded = {}
        for name, bias in self._sites().items():
            scale, shift = factors[f"{name}.scale"], factors[f"{name}.shift"]
            weight = base[name]
            folded[name] = weight * scale.view(-1, *[1] * (weight.dim() - 1))
            if name == _EMBEDDING:  # the first position is that of the class token
                folded[bias] = torch.cat([base[bias][:1], base[bias][1:] + shift])
            else:
                folded[bias] = base[bias] * scale + shift
        return folded
