"""Selections of strategies on architectures of published sizes, without memory for weights."""

from typing import Any

import open_clip
import torch
from torch import nn


def build(architecture: str = "ViT-B-16", custom: bool = False) -> Any:
    """Build an architecture on the meta device."""
    config = open_clip.get_model_config(architecture)
    assert config is not None
    with torch.device("meta"):
        return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)


def chosen(cls: Any, options: Any, custom: bool = False) -> tuple[list[str], nn.Module]:
    """Return the names of the parameters that a strategy selects on ViT-B/16, and the model."""
    clip = build(custom=custom)
    made: Any = object.__new__(cls)
    made.model, made.options = nn.Module(), options
    made.model.clip = clip
    identities = [id(p) for p in cls.trainable(made)]
    names = {id(p): name for name, p in clip.named_parameters()}
    assert len(set(identities)) == len(identities)
    return [names[i] for i in identities], clip
