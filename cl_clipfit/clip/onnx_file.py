"""A classifier of a fixed list of classes as an ONNX file, and the scores such a file gives."""

import importlib.util
import json
import logging
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_clipfit.clip.classifier import CLIPClassifier
from cl_clipfit.errors import UserError

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_OLDEST_TORCH = (2, 14)
_LARGEST = 2_000_000_000  # bytes of weights in one file: a limit of protobuf


def check_onnx() -> None:
    """Refuse a machine that cannot write ONNX files.

    Raises:
        UserError: a package is missing, or PyTorch is older than its exporter that works.
    """
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"ONNX needs {', '.join(missing)}: pip install 'cl_clipfit[onnx]'")
    version = tuple(int(digits) for digits in re.findall(r"\d+", torch.__version__)[:2])
    if version < _OLDEST_TORCH:
        raise UserError(
            f"this PyTorch is {torch.__version__}, and the exporter of ONNX files works from"
            f" {'.'.join(map(str, _OLDEST_TORCH))}: pip install 'cl_clipfit[onnx]'"
        )


class _Graph(nn.Module):
    """Preprocessed images (B, 3, H, W) to logits (B, K), with text features that do not change."""

    def __init__(
        self, model: CLIPClassifier, text: Tensor, adapt: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.model, self.adapt = model, adapt
        self.register_buffer("text", text)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits."""
        text: Any = self.text
        features = F.normalize(self.model.clip.encode_image(pixels), dim=-1)
        return self.model.logits(self.adapt(features), text)


@torch.no_grad()
def write_onnx(
    file: Path, model: CLIPClassifier, text: Tensor, adapt: Callable[[Tensor], Tensor],
    metadata: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write the image tower, what adapts its features, and text features as one graph.

    Its input is `pixels`, float32 (batch, 3, H, W), preprocessed; its output `logits` (batch, K).

    Args:
        file: to write.
        model: the classifier, on the CPU, in fp32.
        text: (K, d), unit length: the classes.
        adapt: maps image features (B, d) to those that are compared with `text`.
        metadata: goes into the file's metadata as JSON, by name.

    Raises:
        UserError: PyTorch's exporter fails.
    """
    import onnx

    size = sum(p.numel() * p.element_size() for p in model.clip.visual.parameters())
    if size > _LARGEST:
        raise UserError(f"{file}: the image tower has {size:,} bytes, and an ONNX file holds 2 GB")
    pixels = torch.zeros(2, 3, *model.preprocess.size)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            written = torch.onnx.export(
                _Graph(model, text, adapt).eval(), (pixels,), dynamo=True, verbose=False,
                input_names=["pixels"], output_names=["logits"],
                dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
            )  # fmt: skip
    except Exception as error:  # whatever the exporter meets
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{file}: PyTorch cannot export this model to ONNX: {reason}") from error
    finally:
        logging.disable(logging.NOTSET)
    assert written is not None
    proto = written.model_proto
    onnx.helper.set_model_props(proto, {k: json.dumps(v) for k, v in metadata.items()})
    onnx.save(proto, str(file))


def onnx_logits(file: Path, pixels: Tensor) -> Tensor:
    """Return the logits (B, K) that onnxruntime computes for preprocessed images (B, 3, H, W)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"pixels": pixels.numpy()})
    return torch.from_numpy(logits)
