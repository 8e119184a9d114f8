"""PEGP: recorded moments are those of the inputs, and old outputs stay in every host."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_clipfit import CLIPClassifier, CLIPStrategy, Recipe, Source, UserError, build_scenario
from cl_clipfit.registry import Registry
from cl_clipfit.strategies.lora import Lora, LoraOptions
from cl_clipfit.strategies.pegp import Pegp, PegpOptions
from tests.support.tiny import TINY

Build = Callable[..., CLIPClassifier]
REGISTRY = Registry()


def make(host: str, build: Build, source: Source, energy: float = 1.0, **recipe: Any) -> Any:
    cls = REGISTRY.strategy_class(host)
    given = {"epochs": 2, "batch_size": 4, "lr": 0.02, "weight_decay": 0.1, **recipe}
    return Pegp.over(cls)(
        model=build(), class_names=source.class_names, recipe=Recipe(**given),
        options=PegpOptions(energy=energy),
    )  # fmt: skip


def outputs(model: CLIPClassifier, images: Tensor, classes: list[int]) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return model.image_features(images), model.text_features(classes)


def test_moments_are_those_of_the_inputs(tiny: Build, source: Source) -> None:
    strategy = make("lora", tiny, source)
    stream = build_scenario("s", source, tasks=3).benchmark.train_stream
    strategy.train(stream[0], eval_streams=[])
    model, clip = strategy.model, strategy.model.clip
    images = torch.stack([row[0] for row in stream[0].dataset])
    seen: dict[str, Tensor] = {}
    for tower, key in ((clip.visual, "clip.visual."), (clip, "clip.")):
        for i, block in enumerate(tower.transformer.resblocks):
            name = f"{key}transformer.resblocks.{i}.attn.in_proj_weight"
            block.attn.register_forward_pre_hook(
                lambda _m, given, name=name: seen.__setitem__(name, given[0])
            )
    tokens = torch.cat([model._tokens[c] for c in (0, 1)])
    with torch.no_grad():
        clip.encode_image(model.preprocess(images))
        clip.encode_text(tokens)
    assert set(seen) == set(strategy.moments) == set(strategy.selection)
    for name, x in seen.items():
        if ".visual." in name:
            rows = x.flatten(0, 1)
        else:  # each prompt up to its end token, the one of the largest id
            rows = torch.cat([p[: int(t.argmax()) + 1] for p, t in zip(x, tokens, strict=True)])
        expected = (rows.double().T @ rows.double()) / len(rows)
        torch.testing.assert_close(strategy.moments[name], expected, rtol=1e-4, atol=1e-5)


def test_text_of_old_classes_stays(tiny: Build, source: Source) -> None:
    """Two prompts have fewer tokens than the width, so that there is a null space."""

    class TextLora(Lora):
        def trainable(self) -> Any:
            return [p for p in super().trainable() if p.shape[1] == 16]

    made: dict[bool, float] = {}
    stream = build_scenario("s", source, tasks=3).benchmark.train_stream
    for projects in (True, False):
        recipe = Recipe(epochs=4, batch_size=4, lr=0.05, weight_decay=0.1)
        cls: Any = Pegp.over(TextLora) if projects else TextLora
        options: Any = {"options": PegpOptions(energy=1.0)} if projects else {}
        options["host_options" if projects else "options"] = LoraOptions(rank=4, alpha=4.0)
        strategy = cls(model=tiny(), class_names=source.class_names, recipe=recipe, **options)
        strategy.train(stream[0], eval_streams=[])
        old = strategy.model.text_features([0, 1]).detach()
        new = strategy.model.text_features([2, 3]).detach()
        strategy.train(stream[1], eval_streams=[])
        moved = (strategy.model.text_features([0, 1]) - old).abs().max()
        made[projects] = float(moved.detach())
        if projects:
            ranks = [b.shape[1] for b in strategy._bases.values()]
            assert len(ranks) == 2
            assert max(ranks) < 16
            assert (strategy.model.text_features([2, 3]) - new).abs().max() > 1e-3
    assert made[True] < 1e-4 < 1e-2 < made[False]


def test_projections_and_what_they_leave(tiny: Build, source: Source) -> None:
    strategy = make("prolip", tiny, source, energy=0.9)
    stream = build_scenario("s", source, tasks=3).benchmark.train_stream
    strategy.train(stream[0], eval_streams=[])
    name = "clip.visual.proj"
    moment, start = strategy.moments[name].clone(), strategy.selection[name].detach().clone()
    strategy.train(stream[1], eval_streams=[])
    values, vectors = torch.linalg.eigh(moment)
    kept = vectors.flip(1)[:, : int((values.flip(0).cumsum(0) / values.sum() < 0.9).sum()) + 1]
    change = (strategy.selection[name] - start).detach().double()
    assert change.abs().max() > 0.01
    assert (kept.T @ change).abs().max() < 1e-5
    assert "_bases" not in strategy.state_dict()
    torch.testing.assert_close(strategy.state_dict()["moments"][name], strategy.moments[name])


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("bitfit", r"bias cannot be projected: the input of a bias or LayerNorm is constant"),
        ("ln-tune", r"ln_pre\.weight cannot be projected: the input of a bias or LayerNorm"),
        ("linear-head", r"head cannot be projected: it does not read a LayerNorm"),
        ("sift", r"out_proj\.weight cannot be projected: it does not read a LayerNorm"),
    ],
)
def test_what_cannot_be_projected_is_refused(
    host: str, says: str, tiny: Build, source: Source
) -> None:
    task = build_scenario("s", source, tasks=3).benchmark.train_stream[0]
    with pytest.raises(UserError, match=says):
        make(host, tiny, source).train(task, eval_streams=[])


def test_a_command_says_in_one_line_what_cannot_be_projected(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    line = refused(*TINY, "--strategy", "pegp:host=bitfit", "--output", tmp_path)
    assert line.startswith("error: updates of clip.visual.ln_pre.bias cannot be projected: ")


def test_hosts_that_take_no_steps_are_refused() -> None:
    assert Pegp.refuses(REGISTRY.strategy_class("lda")) == "trains nothing that could be projected"
    assert Pegp.refuses(REGISTRY.strategy_class("mergetune"))
    assert issubclass(Pegp.over(REGISTRY.strategy_class("coop")), CLIPStrategy)
