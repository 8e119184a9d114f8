"""CoOp: learned first words of the prompt, shared by all classes; both towers stay frozen."""

from cl_clipfit import PromptStrategy

NAME = "coop"
GROUP = "prompts"
PAPER = "Zhou et al. 2022, arXiv 2109.01134 (IJCV)"
NEEDS = "nothing of earlier tasks"
RECIPE = {"optimizer": "adamw", "lr": 3e-3}  # how it was chosen: docs/clipfit.md
RECIPES = {
    # Chosen by average accuracy on held-out training images, mean of two class orders: 83.1
    # (zero-shot 81.9; 3e-3: 82.5, with a higher final accuracy) and 77.5 (zero-shot 67.0).
    "split-digits": {"lr": 1e-2},
    "split-shapes100": {"lr": 3e-3},
}
PUBLISHED = {
    "optimizer": "sgd", "lr": 2e-3, "momentum": 0.9, "weight_decay": 5e-4,
    "batch_size": 32, "drop_last": True, "epochs": 100,
    "schedule": "epoch-cosine", "warmup_epochs": 1, "warmup_lr": 1e-5,
    "augmentation": "crop-flip", "crop_scale": 0.08, "ce_scope": "task",
}  # fmt: skip


class CoOp(PromptStrategy):
    """Cross-entropy over cosine similarities with the learned prompts."""

    extends = True
