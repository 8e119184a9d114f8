"""Pre-train the bundled mini CLIP: `python -m cl_clipfit.clip.mini.pretrain --output FILE`.

Contrastive pre-training (Radford et al. 2021, arXiv 2103.00020) on procedurally drawn, captioned
images. Two captions of a batch may fit the same image ("a circle", "a red circle"), so the targets
are uniform over all captions that fit (as in UniCL, Yang et al. 2022, arXiv 2204.03610).
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_clipfit.clip.mini.captions import CaptionTable, build_captions, sample_pairs

MINI_FOLDER = Path(__file__).parent
STEPS = 6_000
BATCH_SIZE = 128
PEAK_LR = 1.5e-3
WARMUP_STEPS = 100
WEIGHT_DECAY = 0.05


def matching_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Symmetric cross-entropy of images (B) and unique captions (U) against soft targets.

    Args:
        logits: (B, U), scaled cosine similarities.
        truth: (B, U) of bool, which caption fits which image; every row and column has one.
    """
    target = truth.float()
    by_image = F.cross_entropy(logits, target / target.sum(1, keepdim=True))
    by_text = F.cross_entropy(logits.T, target.T / target.T.sum(1, keepdim=True))
    return (by_image + by_text) / 2


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < WARMUP_STEPS:
        return PEAK_LR * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return PEAK_LR * 0.5 * (1 + math.cos(math.pi * progress))


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.98))


def _tokenize(captions: list[str]) -> Tensor:
    import open_clip

    config = json.loads((MINI_FOLDER / "mini.json").read_text())
    return open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])(captions)


def build_compact(tokens: Tensor, seed: int) -> tuple[Any, Tensor, Tensor]:
    """Build the mini CLIP with a token table of the used rows only.

    Training all 49,408 rows would spend most of a step on rows that never occur. The used ids stay
    sorted, so that the end token is still the largest and open_clip's arg-max pooling finds it.

    Returns:
        the model, the used token ids (V,), the captions (N, L) in compact ids.
    """
    import open_clip

    config = json.loads((MINI_FOLDER / "mini.json").read_text())
    used, compact = torch.unique(tokens, return_inverse=True)
    config["text_cfg"]["vocab_size"] = len(used)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CLIP(**config)
    return model, used, compact


def full_state(model: nn.Module, used: Tensor, seed: int) -> dict[str, Tensor]:
    """Return the fp16 state dict with the trained rows scattered into the full token table.

    Rows that were never trained keep their random initialisation: those words have no meaning.
    """
    config = json.loads((MINI_FOLDER / "mini.json").read_text())
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    rows = state["token_embedding.weight"]
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(config["text_cfg"]["vocab_size"], rows.shape[1], generator=generator)
    table *= 0.02
    table[used] = rows
    state["token_embedding.weight"] = table
    return {k: v.half().contiguous() if v.is_floating_point() else v for k, v in state.items()}


def training_steps(
    model: Any, table: CaptionTable, tokens: Tensor, *, steps: int, batch_size: int, seed: int
) -> Iterator[float]:
    """Train in place; yield the loss of each step."""
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    mean = torch.tensor(OPENAI_DATASET_MEAN).view(3, 1, 1)
    std = torch.tensor(OPENAI_DATASET_STD).view(3, 1, 1)
    optimizer = _optimizer(model)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        images, captions, facts = sample_pairs(table, batch_size, generator)
        captions = captions.unique()
        truth = table.truth(captions, facts)
        image = model.encode_image((images.float() / 255 - mean) / std, normalize=True)
        text = model.encode_text(tokens[captions], normalize=True)
        loss = matching_loss(model.logit_scale.exp() * image @ text.T, truth)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        yield loss.item()


def pretrain(
    *,
    steps: int = STEPS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    report: Callable[[int, float, dict[str, Tensor]], None] | None = None,
    report_every: int = 500,
) -> dict[str, Tensor]:
    """Pre-train the mini CLIP and return its full fp16 state dict.

    The result depends on the arguments, on the versions of torch, Pillow and matplotlib (fonts),
    and, in the last bits, on the processor and the number of threads.
    """
    table = build_captions()
    model, used, tokens = build_compact(_tokenize(table.captions), seed)
    recent: list[float] = []
    losses = training_steps(model, table, tokens, steps=steps, batch_size=batch_size, seed=seed + 1)
    for step, loss in enumerate(losses, 1):
        recent.append(loss)
        if report and step % report_every == 0:
            report(step, sum(recent) / len(recent), full_state(model, used, seed))
            recent.clear()
    return full_state(model, used, seed)


def main(argv: list[str] | None = None) -> int:
    """Command line of the module."""
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=MINI_FOLDER / "weights.safetensors")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and images")
    arguments = parser.parse_args(argv)
    started = time.monotonic()

    partial = arguments.output.with_name(f"{arguments.output.name}.partial")

    def report(step: int, loss: float, state: dict[str, Tensor]) -> None:
        save_file(state, partial)
        minutes = (time.monotonic() - started) / 60
        scale = float(state["logit_scale"].float().exp())
        line = f"step {step}/{arguments.steps} loss {loss:.3f} logit scale {scale:.1f}"
        print(f"{line} {minutes:.1f} min", flush=True)

    save_file(pretrain(steps=arguments.steps, seed=arguments.seed, report=report), partial)
    partial.replace(arguments.output)  # an interrupted run leaves the old file unchanged
    print(f"wrote {arguments.output} in {(time.monotonic() - started) / 60:.1f} min")
    return 0


if __name__ == "__main__":
    sys.exit(main())
