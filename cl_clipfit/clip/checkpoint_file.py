"""Write the weights of a CLIP model as a checkpoint that open_clip reads."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from cl_clipfit.storage.files import write_atomic


def write_checkpoint(file: Path, clip: nn.Module, about: Mapping[str, Any]) -> None:
    """Write weights, and what is known of the model beside them.

    Args:
        file: ends in `.safetensors`, else PyTorch writes it.
        clip: the model.
        about: class names and the like, by name: JSON in the metadata of a safetensors file,
            entries beside `state_dict` otherwise.

    Raises:
        UserError: the file cannot be written.
    """
    weights = clip.state_dict().items()
    state = {name: value.detach().cpu().clone().contiguous() for name, value in weights}
    if file.suffix.lower() == ".safetensors":
        texts = {name: json.dumps(value, ensure_ascii=False) for name, value in about.items()}
        data = save(state, {"format": "pt", **texts})
    else:
        buffer = io.BytesIO()
        torch.save({"state_dict": state, **about}, buffer)
        data = buffer.getvalue()
    write_atomic(file, data)
