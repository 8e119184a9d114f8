"""Shared pieces."""

from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg
from torch import Tensor

from cl_clipfit.clip import CLIPClassifier
from tests.support.tiny import TINY_CLIP, tokenizer

NAMES = ["cat", "grey cat", "very long name of thing", "dog", "grey dog", "cat"]


def build(
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    kind: type = open_clip.CLIP,
    **more: Any,
) -> CLIPClassifier:
    torch.manual_seed(0)
    config = {
        "embed_dim": 16,
        "vision_cfg": {**TINY_CLIP["vision_cfg"], **(vision or {})},  # type: ignore[dict-item]
        "text_cfg": {**TINY_CLIP["text_cfg"], **(text or {})},  # type: ignore[dict-item]
    }
    clip = kind(**config, **more)
    for parameter in clip.parameters():  # no zero bias, no gain of one
        parameter.data += 0.1 * torch.randn_like(parameter)
    clip.logit_scale.data.zero_()
    size = config["vision_cfg"]["image_size"]
    open_clip.set_model_preprocess_cfg(clip, {**PreprocessCfg().__dict__, "size": size})
    return CLIPClassifier(clip, tokenizer())


def pixels(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(2))
