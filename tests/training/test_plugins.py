"""Every stock plug-in of Avalanche, tried on the tiny model: those that run, and why others not."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.core import BasePlugin, SupervisedPlugin
from avalanche.training import plugins, supervised
from avalanche.training.plugins import ReplayPlugin
from avalanche.training.templates.base import BaseTemplate
from torch import Tensor

from cl_clipfit import Recipe, Scenario, Source, UserError, build_scenario
from cl_clipfit.cli.app import main
from cl_clipfit.training.plugins import REFUSED, WORKS, stock_arguments, stock_plugin
from cl_clipfit.training.snapshot import kept_bytes
from tests.support.over_host import REGISTRY, Build, made
from tests.support.tiny import TINY

# What each one does when it is tried anyway, with these arguments: the start of its error.
TRIED = {
    "bic": ({"stage_2_epochs": 1}, "property 'dataset'"),
    "feature-distillation": ({}, "Task label not found"),
    "fecam-memory": ({}, ""),
    "fecam-oracle": ({}, ""),
    "fecam-update": ({}, ""),
    "generative-replay": ({}, "'CLIPClassifier' object has no attribute 'generate'"),
    "gss": ({"mem_size": 12, "input_size": [3, 16, 16]}, "each element in list of batch should be"),
    "lfl": ({"lambda_e": 1.0}, "BaseModel.get_features"),
    "lwf": ({}, "'ClassificationDataset' object has no attribute 'targets_task_labels'"),
    "mir": ({"batch_size_mem": 1, "subsample": 4}, "One of the differentiated Tensors does not"),
    "ncm-memory": ({}, ""),
    "ncm-oracle": ({}, ""),
    "ncm-update": ({}, ""),
    "rar": ({"batch_size_mem": 4}, "symbolically traced variables cannot be used as inputs"),
}
OTHERWISE = {"cope", "cwr-star", "early-stopping", "lr-scheduler", "si", "train-generator"}
SMALL = {"agem": {"patterns_per_experience": 6, "sample_size": 6}, "gem": {"memory_strength": 0.1},
         "gdumb": {"mem_size": 6}, "rwalk": {"delta_t": 2}}  # fmt: skip


def stream_of(source: Source) -> Scenario:
    return build_scenario("s", source, tasks=2)


def full_with(plugin: Any, model: Any, stream: Scenario, batch: int = 8) -> Any:
    """Train full fine-tuning with a plug-in; return the strategy."""
    torch.manual_seed(0)
    strategy = REGISTRY.strategy_class("full")(
        model=model, class_names=stream.class_names, plugins=[plugin],
        recipe=Recipe(epochs=1, batch_size=batch, lr=0.01),
    )  # fmt: skip
    strategy.train(stream.benchmark.train_stream, eval_streams=[])
    return strategy


def weights(strategy: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in strategy.model.parameters()])


def test_the_tables_name_every_plugin_and_strategy_of_avalanche() -> None:
    known = {stock.cls for stock in WORKS.values()} | {cls for cls, _ in REFUSED.values()}
    bare = {SupervisedPlugin.__name__, "EvaluationPlugin", *("AGEM", "BiC", "CWRStar", "CoPE")}
    by_plugin = {"EWC", "FromScratchTraining", "GDumb", "GEM", "GSS_greedy", "GenerativeReplay"}
    by_plugin |= {"LFL", "LwF", "MAS", "MIR", "Replay", "SynapticIntelligence"}
    for module, kind in ((plugins, BasePlugin), (supervised, BaseTemplate)):
        for name, cls in vars(module).items():
            if isinstance(cls, type) and issubclass(cls, kind):
                assert name in known | bare | by_plugin, name
    assert not {*WORKS} & {*REFUSED}
    loops = [cls for cls, _ in REFUSED.values() if hasattr(supervised, cls)]
    assert {name for name, (cls, _) in REFUSED.items() if cls not in loops} == {*TRIED} | OTHERWISE


@pytest.mark.parametrize("name", sorted(WORKS))
def test_a_plugin_that_runs_changes_what_is_learned(name: str, tiny: Build, source: Source) -> None:
    stream = stream_of(source)
    if (needs := WORKS[name].needs) and find_spec(needs) is None:
        with pytest.raises(UserError, match=f"pip install {needs}"):
            stock_plugin(name, stock_arguments(name, {}))
        return
    plugin = stock_plugin(name, stock_arguments(name, SMALL.get(name, {})))
    found = weights(full_with(plugin, tiny(), stream))
    alone = weights(full_with(SupervisedPlugin(), tiny(), stream))
    assert found.isfinite().all()
    assert (found - alone).abs().max() > 1e-3


@pytest.mark.parametrize("name", sorted(TRIED))
def test_a_plugin_that_is_refused_fails_for_its_reason(
    name: str, tiny: Build, source: Source
) -> None:
    arguments, message = TRIED[name]
    cls = getattr(plugins, REFUSED[name][0])
    if "mem_size" in cls.__init__.__annotations__:
        arguments = {"mem_size": 6, **arguments}
    batch = 23 if name == "mir" else 8  # it replays no class that the last batch has
    with pytest.raises(Exception) as raised:
        full_with(cls(**arguments), tiny(), stream_of(source), batch)
    assert str(raised.value).startswith(message)


def test_plugins_that_are_refused_without_an_error_of_their_own(
    tiny: Build, source: Source
) -> None:
    stream = stream_of(source)
    intelligence: Any = plugins.SynapticIntelligencePlugin(si_lambda=1e6)
    strategy = full_with(intelligence, tiny(), stream)
    assert all(not one.data.any() for one in intelligence.ewc_data[1].values())  # importances
    assert torch.equal(weights(strategy), weights(full_with(SupervisedPlugin(), tiny(), stream)))
    model = tiny()
    (name, _), *_ = [plugins.cwr_star.get_last_fc_layer(model)]
    assert name.startswith("clip.")  # a layer of a tower: cwr-star and cope take it for a head


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("avalanche:si", "si (Avalanche's SynapticIntelligencePlugin) does not run on CLIP: on a"),
        ("avalanche:der", "der (Avalanche's DER) does not run on CLIP: .* use --strategy der-pp"),
        ("avalanche:repaly", "there is no plug-in 'repaly'. Did you mean 'replay'?"),
        ("avalanche:ewc,mem_size=4", "ewc has no argument 'mem_size': it takes ewc_lambda"),
        ("avalanche:ewc,mode=online", "decay_factor and mode=online need each other"),
        ("avalanche:replay,plugin=ewc", "avalanche:replay,plugin=ewc: expected NAME:key=value"),
        ("full:replay", "full:replay: expected NAME:key=value"),
    ],
)
def test_what_does_not_run_is_refused_in_one_line(
    label: str, message: str, refused: Callable[..., str]
) -> None:
    line = refused(*TINY, "--strategy", label)
    first, _, last = message.partition(".* ")
    assert first in line
    assert last in line


def test_the_strategy_is_the_plugin_run_by_hand_and_its_images_are_counted(
    tiny: Build, source: Source
) -> None:
    stream = stream_of(source)
    by_hand = full_with(ReplayPlugin(mem_size=6), tiny(), stream)
    ours = made("avalanche", tiny, stream, mem_size=6)
    ours.recipe = by_hand.recipe
    ours.train_epochs, ours.train_mb_size = 1, 8
    torch.manual_seed(0)
    ours.train(stream.benchmark.train_stream, eval_streams=[])
    assert torch.equal(weights(ours), weights(by_hand))
    images, labels, keys = 6 * 3 * 16 * 16, 6 * 8, 6 * 4
    assert kept_bytes(ours) == images + labels + keys
    plain = made("avalanche", tiny, stream, plugin="mas", host="bitfit")
    plain.train(stream.benchmark.train_stream, eval_streams=[])
    numbers = sum(p.numel() for p in plain.model.parameters())
    assert kept_bytes(plain) == 2 * 4 * numbers  # weights and their importances


def test_a_run_that_was_stopped_is_not_resumed(
    tmp_path: Path, stop_at: Callable[[int], None], refused: Callable[..., str]
) -> None:
    job = [*TINY, "--epochs", "1", "--batch-size", "5", "--quiet", "--output", str(tmp_path),
           "--strategy", "avalanche:replay,mem_size=7"]  # fmt: skip
    stop_at(7)
    assert main(job) == 143
    stop_at(0)
    assert "cannot be resumed, since no checkpoint holds all of its state" in refused(*job)


def test_the_page_says_what_the_tables_say() -> None:
    page = Path("docs/avalanche-plugins.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    works = [
        f"| `{name}` | {stock.cls} | {', '.join(f'`{key}`' for key in stock.arguments) or 'none'}"
        f" | {stock.note}{f'; `pip install {stock.needs}`' if stock.needs else ''} |"
        for name, stock in WORKS.items()
    ]
    assert rows == works + [f"| `{n}` | {cls} | {why} |" for n, (cls, why) in REFUSED.items()]
