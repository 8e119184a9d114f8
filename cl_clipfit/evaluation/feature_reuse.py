"""When image features can be shared: between sets of weights, and with the pretrained model."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from cl_clipfit.clip import CLIPClassifier
from cl_clipfit.clip.encoders.stock import plain
from cl_clipfit.training.strategy import CLIPStrategy

_SCORING = ("scores", "score_all", "score_probe")
_SETTING = (bool, int, float, str, tuple)


def compares_as_clip(strategy: CLIPStrategy) -> bool:
    """Tell whether a strategy scores by `model.image_features` against `model.text_features`.

    That is what `CLIPStrategy.scores` does. A method of its own may do anything with the images.
    """
    return all(_is(strategy, name, CLIPStrategy) for name in _SCORING) and all(
        _is(strategy.model, name, CLIPClassifier)
        for name in ("forward", "image_features", "text_features")
    )


def reads_features(strategy: CLIPStrategy) -> bool:
    """Tell whether features may stand where a strategy scores images: it says so, or shows it."""
    return "image" not in strategy.towers or compares_as_clip(strategy)


def leaves_images(strategy: CLIPStrategy, names: Iterable[str]) -> bool:
    """Tell whether image features are the same whatever values these parameters have.

    True where the strategy says so. Else they must be pretrained ones of the text tower or a
    learned context: a parameter that a method added may be part of its image tower. And nothing
    may be hooked to the image tower, since a hook may read anything.

    Args:
        strategy: whose model it is.
        names: of parameters, as `named_parameters` gives them.
    """
    if "image" not in strategy.towers:
        return True
    model = strategy.model
    text = {n for n in model.backbone_names if not n.startswith("clip.visual.")} | {"context"}
    return text.issuperset(names) and all(plain(m, type(m)) for m in model.clip.visual.modules())


def encodes_as(model: CLIPClassifier, other: CLIPClassifier) -> bool:
    """Tell whether two classifiers, one copied from the other, encode images alike, now.

    Code, settings, parameters and buffers are compared: modules must be of the same classes, with
    the same numbers and names set on them and nothing hooked to them.
    """
    if not _same_code(model, other):
        return False
    own, others = model.clip.visual.state_dict(), other.clip.visual.state_dict()
    return own.keys() == others.keys() and all(
        torch.equal(value, others[name]) for name, value in own.items()
    )


def same_images(
    strategy: CLIPStrategy, one: Mapping[str, Tensor], two: Mapping[str, Tensor]
) -> bool:
    """Tell whether two sets of values, of parameters by name, give the same image features.

    What a set does not name is as it is now.
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
    own = {"": model.clip, **dict(model.clip.visual.named_modules(prefix="visual"))}
    others = {"": other.clip, **dict(other.clip.visual.named_modules(prefix="visual"))}
    return (
        methods
        and settings[0] == settings[1]
        and own.keys() == others.keys()
        and all(_same_module(module, others[name]) for name, module in own.items())
    )


def _same_module(module: nn.Module, other: nn.Module) -> bool:
    own, others = vars(module), vars(other)
    return (
        plain(module, type(other))
        and own.keys() == others.keys()
        and all(v == others[k] for k, v in own.items() if isinstance(v, _SETTING))
    )


def _is(instance: object, name: str, owner: type) -> bool:
    """Tell whether a method is the one that `owner` defines."""
    return getattr(getattr(instance, name), "__func__", None) is getattr(owner, name)
