"""Stock plug-ins of Avalanche 0.6 by name: which of them run on a CLIP classifier, and why not.

Each was tried on a tiny model; `tests/training/test_plugins.py` tries all of them again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from cl_clipfit.errors import UserError, nearest
from cl_clipfit.runtime.lean_imports import lean_imports

with lean_imports():
    from avalanche.training import plugins


@dataclass(frozen=True)
class Stock:
    """A plug-in that runs.

    Attributes:
        cls: name of its class in `avalanche.training.plugins`.
        arguments: the arguments that can be set, with their defaults: Avalanche's, if it has one.
        images: the argument that says how many images of old tasks it keeps; "" if it keeps none.
        fixed: arguments that cannot be set.
        per_task: whether `images` counts those of one task.
        needs: a package that Avalanche does not install.
        note: what to know of it.
    """

    cls: str
    arguments: Mapping[str, Any]
    images: str = ""
    fixed: Mapping[str, Any] | None = None
    per_task: bool = False
    needs: str = ""
    note: str = ""


_ALL_NAMES = "its gradients rank all class names of the stream, also later ones"
_PATTERNS = {"patterns_per_experience": 40}  # 200 of five tasks, as the other memories
WORKS: Mapping[str, Stock] = {
    "agem": Stock(
        "AGEMPlugin", {**_PATTERNS, "sample_size": 32}, "patterns_per_experience", per_task=True,
        note=_ALL_NAMES,
    ),
    "ewc": Stock(
        "EWCPlugin", {"ewc_lambda": 1e4, "mode": "separate", "decay_factor": None},
        note=f"{_ALL_NAMES}; squares the gradient of a batch, where Fisher's has one per image",
    ),
    "from-scratch": Stock(
        "FromScratchTrainingPlugin", {}, fixed={"reset_optimizer": False},  # it is new in each task
        note="each task starts at the pretrained weights",
    ),
    "gdumb": Stock(
        "GDumbPlugin", {"mem_size": 200}, "mem_size",
        note="each task starts at a copy of the pretrained model and trains on the memory alone",
    ),
    "gem": Stock(
        "GEMPlugin", {**_PATTERNS, "memory_strength": 0.5}, "patterns_per_experience",
        per_task=True, needs="quadprog", note=_ALL_NAMES,
    ),
    "mas": Stock(
        "MASPlugin", {"lambda_reg": 1.0, "alpha": 0.5},
        note="importances of the logits of all class names, also later ones",
    ),
    "replay": Stock(
        "ReplayPlugin", {"mem_size": 200, "batch_size_mem": None}, "mem_size",
        note="a reservoir for each task",
    ),
    "rwalk": Stock(
        "RWalkPlugin", {"ewc_lambda": 0.1, "ewc_alpha": 0.9, "delta_t": 10},
        note=f"{_ALL_NAMES}; with tasks of fewer than delta_t steps its loss is NaN",
    ),
}  # fmt: skip

_HEAD = (
    "it looks for a last linear layer, a head of one row for each class, and finds one in a tower"
)
_EVAL = "it needs a model with an eval_classifier, which classifies by class means"
_LABELS = "it needs labels of tasks"
_LOOP = "it is a training loop of its own, not a plug-in"
_NETWORK = "it needs a network of its own"
_NO_METHOD = "it is no method against forgetting"
_THERE = "use --strategy"
REFUSED: Mapping[str, tuple[str, str]] = {  # the class, and why
    "ae-training": ("AETraining", _NETWORK),
    "ar1": ("AR1", _NETWORK),
    "bic": ("BiCPlugin", "it replaces the images of an experience, which Avalanche 0.6 refuses"),
    "cope": ("CoPEPlugin", _HEAD),
    "cumulative": ("Cumulative", f"{_LOOP}: {_THERE} cumulative"),
    "cwr-star": ("CWRStarPlugin", _HEAD),
    "der": ("DER", f"{_LOOP}: {_THERE} der-pp"),
    "early-stopping": ("EarlyStoppingPlugin", _NO_METHOD),
    "er-ace": ("ER_ACE", _LOOP),
    "er-aml": ("ER_AML", _LOOP),
    "expert-gate": ("ExpertGateStrategy", _NETWORK),
    "feature-distillation": ("FeatureDistillationPlugin", _LABELS),
    "feature-replay": ("FeatureReplay", _LOOP),
    "fecam-memory": ("MemoryFeCAMUpdate", _EVAL),
    "fecam-oracle": ("FeCAMOracle", _EVAL),
    "fecam-update": ("CurrentDataFeCAMUpdate", _EVAL),
    "generative-replay": ("GenerativeReplayPlugin", "it needs a generator of images"),
    "gss": ("GSS_greedyPlugin", f"{_LABELS} in its batches, and keeps images as float"),
    "icarl": ("ICaRL", _NETWORK),
    "joint": ("JointTraining", f"{_LOOP}: {_THERE} joint"),
    "l2p": ("LearningToPrompt", _NETWORK),
    "lfl": ("LFLPlugin", "it needs a model of Avalanche's BaseModel, with get_features"),
    "lr-scheduler": ("LRSchedulerPlugin", _NO_METHOD),
    "lwf": ("LwFPlugin", _LABELS),
    "mer": ("MER", _LOOP),
    "mir": ("MIRPlugin", "it takes the gradient of all weights, and frozen ones have none"),
    "naive": ("Naive", f"it is fine-tuning: {_THERE} full"),
    "ncm-memory": ("MemoryNCMUpdate", _EVAL),
    "ncm-oracle": ("NCMOracle", _EVAL),
    "ncm-update": ("CurrentDataNCMUpdate", _EVAL),
    "packnet": ("PackNet", _NETWORK),
    "pnn": ("PNNStrategy", _NETWORK),
    "rar": ("RARPlugin", "it traces the model with torch.fx, which cannot follow its branches"),
    "scr": ("SCR", _LOOP),
    "si": (
        "SynapticIntelligencePlugin",
        "on a CPU it keeps views of the weights in place of their old values, and changes nothing",
    ),
    "slda": ("StreamingLDA", f"{_LOOP}: {_THERE} lda"),
    "train-generator": ("TrainGeneratorAfterExpPlugin", "it needs a generator of images"),
    "vae-training": ("VAETraining", _NETWORK),
}


def stock_arguments(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a stock plug-in.

    Args:
        name: such as "replay".
        given: arguments by name; those that are None are left at their defaults.

    Raises:
        ValueError: the plug-in does not run on CLIP, or does not take an argument; the message says
            why.
    """
    if name in REFUSED:
        cls, reason = REFUSED[name]
        raise ValueError(f"{name} (Avalanche's {cls}) does not run on CLIP: {reason}")
    if name not in WORKS:
        raise ValueError(f"there is no plug-in '{name}'. {nearest(name, [*WORKS, *REFUSED])}")
    stock, chosen = WORKS[name], {key: value for key, value in given.items() if value is not None}
    for key in chosen:
        if key not in stock.arguments:
            takes = ", ".join(stock.arguments) or "no arguments"
            raise ValueError(f"{name} has no argument '{key}': it takes {takes}")
    arguments = {**stock.arguments, **chosen}
    if name == "ewc" and (arguments["mode"] == "online") != (arguments["decay_factor"] is not None):
        raise ValueError("decay_factor and mode=online need each other")
    return arguments


def stock_images(name: str, arguments: Mapping[str, Any]) -> int | str:
    """Return how many images of old tasks a plug-in keeps, as `EXEMPLARS` says it."""
    stock = WORKS[name]
    if not stock.images:
        return "no"
    count: int = arguments[stock.images]
    return f"{count} per task" if stock.per_task else count


def stock_plugin(name: str, arguments: Mapping[str, Any]) -> Any:
    """Return a new plug-in of Avalanche.

    Args:
        name: as in `stock_arguments`.
        arguments: what that function returned.

    Raises:
        UserError: a package that it needs is not installed.
    """
    stock = WORKS[name]
    if stock.needs and find_spec(stock.needs) is None:
        raise UserError(
            f"{stock.cls} of Avalanche needs the package {stock.needs}: pip install {stock.needs}"
        )
    plugin = getattr(plugins, stock.cls)(**arguments, **(stock.fixed or {}))
    if policy := getattr(plugin, "storage_policy", None):
        # What `update` does, without a warning to users that its name is deprecated.
        policy.update = lambda strategy, **_: policy.post_adapt(strategy, strategy.experience)
    return plugin
