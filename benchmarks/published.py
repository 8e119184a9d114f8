"""The training steps of CLIPFit and MERGETUNE as their released code computes them.

Plain PyTorch around open_clip's own towers, and nothing shared with cl_clipfit's steps: what those
are measured against. All prompts are encoded at their full length, towers run as often as in the
released trainers.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from benchmarks.timing import TEMPLATE
from cl_clipfit.clip.loading.factory import check_model
from cl_clipfit.errors import UserError

ANCHOR_WEIGHT = 8.0  # lambda of CLIPFit, W of MERGETUNE
LINE_WEIGHT = 1.0  # W_LMC
LINE_SAMPLES = (0.1, 0.3, 0.5, 0.7, 0.9)
CONTEXT_TOKENS = 4  # "a photo of a"


def load(
    architecture: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Any:
    """Return an untrained open_clip model.

    Args:
        architecture: of open_clip's list, or "mini".
        device: where it goes; on "meta" it has shapes alone.
        dtype: torch.float16 for weights of convolutions and linears in fp16 and LayerNorms in
            fp32, as OpenAI's `convert_weights` leaves them.

    Raises:
        UserError: an unknown architecture, or one whose towers are not open_clip's own ViTs.
    """
    check_model(f"{architecture}:random")
    precision = "fp16" if dtype == torch.float16 else "fp32"
    place = torch.device("meta" if str(device) == "meta" else "cpu")
    silenced = logging.root.manager.disable
    logging.disable(logging.WARNING)  # open_clip warns that the weights are random
    try:
        with place:
            clip = open_clip.create_model(architecture, precision=precision, device=device)
    finally:
        logging.disable(silenced)
    if type(clip) is not open_clip.CLIP or not isinstance(clip.visual, VisionTransformer):
        raise UserError(f"{architecture} is no CLIP with a ViT: choose one such as ViT-B-16")
    return clip.eval()


def sgd(parameters: Iterable[nn.Parameter], fused: bool | None = None) -> torch.optim.SGD:
    """Return the optimiser of both methods; the released code does not ask for fused kernels."""
    return torch.optim.SGD(parameters, lr=2e-3, momentum=0.9, weight_decay=5e-4, fused=fused)


def tokenize(architecture: str, names: Sequence[str], template: str = TEMPLATE) -> Tensor:
    """Return token ids (C, L) of one prompt for each name."""
    tokens: Tensor = open_clip.get_tokenizer(architecture)([template.format(n) for n in names])
    return tokens


def unit(features: Tensor) -> Tensor:
    """Bring rows to unit length, as the trainers write it."""
    return features / features.norm(dim=-1, keepdim=True)


def similarity(text: Tensor, zero_shot: Tensor) -> Tensor:
    """Return 1 - mean cosine of rows."""
    return 1.0 - torch.mean(nn.CosineSimilarity(dim=1, eps=1e-7)(text, zero_shot))


class ClipFit:
    """CLIPFit, Li et al. 2024 (arXiv 2409.16718), `trainers/ClipFit.py`.

    Text is encoded twice in a step, for the logits and for the similarity.

    Args:
        clip: of `load`; its parameters are frozen but for those that train.
        tokens: (C, L) of the class prompts, on the device of `clip`.
    """

    def __init__(self, clip: Any, tokens: Tensor) -> None:
        self.clip, self.tokens = clip, tokens
        for name, parameter in clip.named_parameters():
            visual = name.startswith("visual.")
            parameter.requires_grad_("ln" in name if visual else "c_proj.bias" in name)
        self.trainable = [p for p in clip.parameters() if p.requires_grad]
        self.optimizer = sgd(self.trainable)
        with torch.no_grad():
            self.zero_shot = clip.encode_text(tokens)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of float images (B, 3, H, W) with labels (B,)."""
        clip = self.clip
        image = unit(clip.encode_image(images.type(clip.visual.conv1.weight.dtype)))
        text = unit(clip.encode_text(self.tokens))
        output = clip.logit_scale.exp() * image @ text.t()
        text_again = unit(clip.encode_text(self.tokens))
        score = similarity(text_again, unit(self.zero_shot))
        return F.cross_entropy(output, labels) + ANCHOR_WEIGHT * score

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Train on a batch."""
        loss = self.loss(images, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class MergeTune:
    """MERGETUNE after CoOp, Wang et al. 2026 (arXiv 2601.10497), `kgcoop_coop_LMC.py`.

    A step runs the image tower 1 + 5 times on the same images, without gradients, and the text
    tower three times: the current context for the logits, the first stage's without gradients, and
    the current one again for the line. Zero-shot text is encoded once.

    Args:
        clip: of `load`; all its parameters are frozen.
        tokens: (C, L) of prompts that begin with four words, on the device of `clip`.
        amp: fp16 autocast with a scaled loss, the released default.
    """

    def __init__(self, clip: Any, tokens: Tensor, amp: bool = False) -> None:
        self.clip, self.tokens, self.amp = clip.requires_grad_(False), tokens, amp
        embedded = clip.token_embedding(tokens)
        end = 1 + CONTEXT_TOKENS
        self.prefix, self.suffix = embedded[:, :1], embedded[:, end:]
        self.first_stage = embedded[0, 1:end].clone()
        self.context = nn.Parameter(self.first_stage.clone())
        self.optimizer = sgd([self.context])
        self.scaler = torch.amp.GradScaler(tokens.device.type, enabled=amp)
        with torch.no_grad():
            self.zero_shot = unit(clip.encode_text(tokens))

    def encode_text(self, context: Tensor) -> Tensor:
        """Return features (C, d), not normalised, of all prompts with a context (4, width)."""
        clip = self.clip
        context = context.unsqueeze(0).expand(len(self.tokens), -1, -1)
        x = torch.cat([self.prefix, context, self.suffix], dim=1) + clip.positional_embedding
        x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask))
        last = self.tokens.argmax(dim=-1)  # the end token has the largest id
        features: Tensor = x[torch.arange(len(x), device=x.device), last] @ clip.text_projection
        return features

    def classify(self, images: Tensor, text: Tensor) -> Tensor:
        """Return logits (B, C); the image tower runs in every call."""
        image = unit(self.clip.encode_image(images))
        logits: Tensor = self.clip.logit_scale.exp() * image @ unit(text).t()
        return logits

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of float images (B, 3, H, W) with labels (B,)."""
        text = self.encode_text(self.context)
        loss = F.cross_entropy(self.classify(images, text), labels)
        loss = loss + ANCHOR_WEIGHT * similarity(unit(text), self.zero_shot)
        start = self.encode_text(self.first_stage)
        end = self.encode_text(self.context)
        line = torch.zeros((), device=images.device)
        for t in LINE_SAMPLES:
            middle = start + (end - start) * t
            point = F.cross_entropy(self.classify(images, middle), labels)
            line = line + point / len(LINE_SAMPLES)
        return loss + LINE_WEIGHT * line

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Train on a batch."""
        with torch.autocast(images.device.type, torch.float16, enabled=self.amp):
            loss = self.loss(images, labels)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
