"""Second moments of the inputs of weight matrices, for projections on their null space."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cl_clipfit.clip.encoders.text import end_positions
from cl_clipfit.runtime.processes import alone
from cl_clipfit.training.selection import image_blocks, text_blocks

if TYPE_CHECKING:
    from cl_clipfit.training.strategy import CLIPStrategy


@dataclass(frozen=True)
class Inputs:
    """Where a weight matrix gets its inputs from.

    Attributes:
        norm: the LayerNorm whose output they are.
        inputs_first: whether outputs are x @ weight.
        text: whether it belongs to the text tower.
        last: whether only the end token of a prompt is read.
    """

    norm: Any
    inputs_first: bool = False
    text: bool = False
    last: bool = False


def matrix_inputs(clip: Any) -> dict[int, Inputs]:
    """Return the inputs of the matrices that read a LayerNorm of an open_clip tower, by id.

    They are the joint matrices of queries, keys and values, the first ones of feed-forward
    networks, and the last projections.
    """
    found: dict[int, Inputs] = {}
    tower, visual = getattr(clip, "text", clip), clip.visual
    for text, blocks in ((True, text_blocks(clip)), (False, image_blocks(clip))):
        for block in blocks:
            attention = getattr(getattr(block, "attn", None), "in_proj_weight", None)
            first = getattr(getattr(getattr(block, "mlp", None), "c_fc", None), "weight", None)
            for weight, norm in ((attention, "ln_1"), (first, "ln_2")):
                if weight is not None and hasattr(block, norm):
                    found[id(weight)] = Inputs(getattr(block, norm), text=text)
    if isinstance(getattr(visual, "proj", None), nn.Parameter):
        found[id(visual.proj)] = Inputs(visual.ln_post, inputs_first=True)
    if isinstance(getattr(tower, "text_projection", None), nn.Parameter):
        final = Inputs(tower.ln_final, inputs_first=True, text=True, last=True)
        found[id(tower.text_projection)] = final
    return found


@torch.no_grad()
def input_moments(
    strategy: "CLIPStrategy", inputs: dict[str, Inputs], images: Tensor
) -> dict[str, Tensor]:
    """Return the mean of x x^T over the inputs x of matrices, not centred.

    Images, and the prompts that a step encodes with them, are those of the current task. Of a
    prompt, the tokens up to its end count: no later one reaches its features.

    Args:
        strategy: provides model, batches and the forward pass of a step.
        inputs: by parameter name.
        images: (N, ...), of the current task.

    Returns:
        (in, in) in float64 on the CPU, by parameter name.
    """
    clip = strategy.model.clip
    token_embedding = getattr(clip, "text", clip).token_embedding
    batch: dict[str, tuple[Tensor, int]] = {}
    prompts: list[Tensor] = []  # token ids (P, L) of the pass

    def keep_tokens(module: Any, given: tuple[Tensor], output: Tensor) -> None:
        prompts[:] = [given[0]]

    def add(name: str, of: Inputs) -> Callable[..., None]:
        def hook(module: Any, given: Any, output: Tensor) -> None:
            x = output.detach()
            if of.text:
                ends = end_positions(clip, prompts[0])[:, None]
                place = torch.arange(x.shape[1], device=x.device)
                x = x[place == ends if of.last else place <= ends]
            x = x.reshape(-1, x.shape[-1]).double()
            total, rows = batch.get(name, (torch.zeros((), device=x.device), 0))
            batch[name] = (total + x.T @ x, rows + len(x))

        return hook

    sums: dict[str, tuple[Tensor, int]] = {}

    def encode(images: Tensor) -> Tensor:
        batch.clear()  # of a pass that ran out of memory
        strategy.training_logits(images)
        for name, (total, rows) in batch.items():
            before, count = sums.get(name, (torch.zeros(()), 0))
            sums[name] = (before + total.cpu(), count + rows)
        return images.new_empty(len(images), 0)

    with contextlib.ExitStack() as hooks:
        hooks.enter_context(token_embedding.register_forward_hook(keep_tokens))
        for name, of in inputs.items():
            hooks.enter_context(of.norm.register_forward_hook(add(name, of)))
        with alone():  # the sums are of all images, in every process
            strategy.in_batches(encode, images)
    return {name: total / rows for name, (total, rows) in sums.items()}
