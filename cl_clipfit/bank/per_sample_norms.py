"""Mixed batches: one pass of the image tower in which each image has its task's LayerNorms.

In the image tower, CLIPFit trains weights and biases of LayerNorms. They act on each sample
independently, so samples of different tasks can share every matrix product of a pass.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NAMES = (
    "LayerNorm",
    "LayerNormFp32",
)  # in torch, open_clip and timm; other classes permute channels


class Encoder(Protocol):
    """The interface that a mixed batch needs from a model; `CLIPClassifier` has it."""

    clip: Any

    def named_parameters(self) -> Any:
        """Yield names and parameters."""

    def image_features(self, images: Tensor) -> Tensor:
        """Encode images."""


def _towers_norms(model: Encoder) -> dict[str, tuple[nn.LayerNorm, str]]:
    """Map names of the image tower's LayerNorm parameters to their module and "weight" or "bias".

    Only norms whose input has one sample per row: not those of a tower whose first dimension is
    tokens, nor the one that CoCa's pooling applies to its queries, which have no batch dimension.
    """
    visual = model.clip.visual
    if not all(getattr(module, "batch_first", True) for module in visual.modules()):
        return {}
    queries = {
        id(module.ln_q)
        for module in visual.modules()
        if hasattr(module, "ln_q") and isinstance(getattr(module, "query", None), nn.Parameter)
    }
    owners = {
        id(parameter): (module, name)
        for module in visual.modules()
        if isinstance(module, nn.LayerNorm) and type(module).__name__ in _NAMES
        for name, parameter in module.named_parameters(recurse=False)
        if id(module) not in queries
    }
    return {n: owners[id(p)] for n, p in model.named_parameters() if id(p) in owners}


def _unmixable(model: Encoder, names: Iterable[str]) -> list[str]:
    """Return the parameters that cannot differ between samples; text parameters do not matter."""
    parameters, norms = dict(model.named_parameters()), _towers_norms(model)
    visual = {id(p) for p in model.clip.visual.parameters()}
    return [
        name
        for name in names
        if name not in parameters or (id(parameters[name]) in visual and name not in norms)
    ]


def mixable(model: Encoder, names: Iterable[str]) -> bool:
    """Return whether samples of tasks that differ in these parameters can share a pass.

    Args:
        model: a `CLIPClassifier`.
        names: parameters by their full name; those outside the image tower do not matter.

    Returns:
        True if those in the image tower are all weights and biases of LayerNorms.
    """
    return not _unmixable(model, names)


@torch.no_grad()
def mixed_image_features(
    model: Encoder, images: Tensor, choices: Tensor, deltas: Sequence[Mapping[str, Tensor]]
) -> Tensor:
    """Encode each image with the weights of its task, in one pass.

    Not thread-safe for one model: its LayerNorms are replaced during the call.

    Args:
        model: a `CLIPClassifier`.
        images: (B, ...), as `image_features` takes them.
        choices: (B,) of integers: image b is encoded with `deltas[choices[b]]`.
        deltas: trained values (not differences) by full parameter name, as `DeltaBank.load` returns
            them; the same names in all. Other parameters keep their current values.

    Returns:
        (B, d), unit length.

    Raises:
        ValueError: not mixable, choices that do not fit the images or the deltas, or a tower whose
            first dimension is not the batch.
    """
    if choices.shape != images.shape[:1]:
        raise ValueError(f"{len(images)} images need choices of shape [{len(images)}]")
    if not deltas or any(set(delta) != set(deltas[0]) for delta in deltas):
        raise ValueError("pass at least one delta, and the same parameters in all of them")
    if len(choices) and not (choices.min() >= 0 and choices.max() < len(deltas)):
        raise ValueError(f"choices must lie from 0 to {len(deltas) - 1}, the last delta")
    if wrong := _unmixable(model, deltas[0]):
        raise ValueError(f"{wrong[0]} cannot differ between images of a batch: encode task by task")
    parameters = dict(model.named_parameters())
    per_module: dict[nn.LayerNorm, dict[str, Tensor]] = {}
    for name, (module, kind) in _towers_norms(model).items():
        if name in deltas[0]:
            # Convert to the parameter's type first: loading the values would round them as well.
            stacked = torch.stack([delta[name] for delta in deltas]).to(parameters[name])
            actual, expected = [*stacked.shape[1:]], [*parameters[name].shape]
            if actual != expected:
                raise ValueError(
                    f"{name} has shape {actual} in the deltas, {expected} in the model"
                )
            per_module.setdefault(module, {})[kind] = stacked[choices.to(stacked.device)]
    with _replaced(
        {module: _per_sample(module, **values) for module, values in per_module.items()}
    ):
        return model.image_features(images)


def _per_sample(
    module: nn.LayerNorm, weight: Tensor | None = None, bias: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """Return a forward with weight and bias (B, *normalized_shape); None keeps the module's."""

    def spread(per_sample: Tensor | None, shared: Tensor | None, x: Tensor) -> Tensor | None:
        if per_sample is None:
            return None if shared is None else shared.to(x)
        between = x.ndim - per_sample.ndim
        return per_sample.reshape(len(per_sample), *[1] * between, *per_sample.shape[1:]).to(x)

    def forward(x: Tensor) -> Tensor:
        values = weight if weight is not None else bias
        if values is not None and (len(x) != len(values) or x.ndim < values.ndim):
            raise ValueError(
                f"the image tower gives a LayerNorm {[*x.shape]} for {len(values)} images:"
                " encode task by task"
            )
        # The module's class determines the output type, for half precision and under autocast.
        dtype = type(module).forward(module, x[:0]).dtype
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        y = F.layer_norm(wide, module.normalized_shape, None, None, module.eps)
        scale, offset = spread(weight, module.weight, y), spread(bias, module.bias, y)
        y = y if scale is None else y.mul_(scale)
        return (y if offset is None else y.add_(offset)).to(dtype)

    return forward


@contextlib.contextmanager
def _replaced(forwards: Mapping[nn.LayerNorm, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Replace the forward of modules in a `with` block."""
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module, earlier in before.items():
            vars(module).pop("forward", None)
            if earlier is not None:
                vars(module)["forward"] = earlier
