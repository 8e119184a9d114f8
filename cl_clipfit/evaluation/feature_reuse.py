"""When image features can be shared: between sets of weights, and with the pretrained model."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from cl_clipfit.clip import CLIPClassifier
from cl_clipfit.clip.encoders.stock import plain
from cl_clipfit.training.strategy import CLIPStrategy

_SCORING = ("scores", "score_all", "score_probe", "joint_scores", "name_scores", "name_features")
_SETTING = (bool, int, float, str, tuple)


def compares_as_clip(strategy: CLIPStrategy) -> bool:
    """Return whether a strategy scores by `model.image_features` against `model.text_features`.

    `CLIPStrategy.scores` does so. An overridden method may do anything with the images.
    """
    return all(_is(strategy, name, CLIPStrategy) for name in _SCORING) and all(
        _is(strategy.model, name, CLIPClassifier)
        for name in ("forward", "image_features", "text_features")
    )


def scores_as_zero_shot(strategy: CLIPStrategy) -> bool:
    """Return whether a strategy that does not learn is zero-shot CLIP on stream and probes."""
    return compares_as_clip(strategy) and _is(strategy, "probe_features", CLIPStrategy)


def scores_in_batches(strategy: CLIPStrategy) -> bool:
    """Return whether a strategy scores all images and probes as `CLIPStrategy` does."""
    return all(_is(strategy, name, CLIPStrategy) for name in ("score_all", "score_probe"))


def joins_scores(strategy: CLIPStrategy) -> bool:
    """Return whether the first K columns of `joint_scores` are those of `scores`."""
    return _is(strategy, "joint_scores", CLIPStrategy)


def reads_features(strategy: CLIPStrategy) -> bool:
    """Return whether a strategy can score features instead of images."""
    return "image" not in strategy.towers or compares_as_clip(strategy)


def leaves_images(strategy: CLIPStrategy, names: Iterable[str]) -> bool:
    """Return whether image features are independent of these parameters.

    True if the strategy declares it. Otherwise they must be pretrained parameters of the text
    tower or a learned context, because a parameter that a method added may be part of its image
    tower; and the image tower must have no hooks, because a hook may read anything.

    Args:
        strategy: the strategy with the model.
        names: of parameters, as in `named_parameters`.
    """
    if "image" not in strategy.towers:
        return True
    model = strategy.model
    text = {n for n in model.backbone_names if not n.startswith("clip.visual.")} | {"context"}
    return text.issuperset(names) and all(plain(m, type(m)) for m in model.clip.visual.modules())


def encodes_as(model: CLIPClassifier, other: CLIPClassifier) -> bool:
    """Return whether two classifiers, one copied from the other, now encode images identically.

    Code, settings, parameters and buffers are compared: modules must have the same classes and the
    same plain attributes, and no hooks.
    """
    if not _same_code(model, other):
        return False
    state, other_state = model.clip.visual.state_dict(), other.clip.visual.state_dict()
    return state.keys() == other_state.keys() and all(
        torch.equal(value, other_state[name]) for name, value in state.items()
    )


def same_images(
    strategy: CLIPStrategy, one: Mapping[str, Tensor], two: Mapping[str, Tensor]
) -> bool:
    """Return whether two sets of values, by parameter name, give the same image features.

    A parameter that a set does not name has its current value.
    """
    differ = [name for name in {*one, *two} if not _equal(strategy.model, name, one, two)]
    return leaves_images(strategy, differ)


def _equal(
    model: CLIPClassifier, name: str, one: Mapping[str, Tensor], two: Mapping[str, Tensor]
) -> bool:
    a, b = (v[name] if name in v else model.get_parameter(name) for v in (one, two))
    return torch.equal(a, b)


def _same_code(model: CLIPClassifier, other: CLIPClassifier) -> bool:
    methods = _is(model, "image_features", CLIPClassifier) and plain(model, type(other))
    settings = [(repr(m.preprocess), m.precision) for m in (model, other)]
    modules = {"": model.clip, **dict(model.clip.visual.named_modules(prefix="visual"))}
    other_modules = {"": other.clip, **dict(other.clip.visual.named_modules(prefix="visual"))}
    return (
        methods
        and settings[0] == settings[1]
        and modules.keys() == other_modules.keys()
        and all(_same_module(module, other_modules[name]) for name, module in modules.items())
    )


def _same_module(module: nn.Module, other: nn.Module) -> bool:
    attributes, other_attributes = vars(module), vars(other)
    return (
        plain(module, type(other))
        and attributes.keys() == other_attributes.keys()
        and all(v == other_attributes[k] for k, v in attributes.items() if isinstance(v, _SETTING))
    )


def _is(instance: object, name: str, owner: type) -> bool:
    """Return whether a method is the one that `owner` defines."""
    return getattr(getattr(instance, name), "__func__", None) is getattr(owner, name)
