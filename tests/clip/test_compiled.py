"""Training through `torch.compile` gives what training without it gives."""

import copy
import functools
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_clipfit import CLIPClassifier, UserError
from cl_clipfit.cli.app import main
from cl_clipfit.training.selection import select_clipfit
from tests.support.encoders import NAMES, build
from tests.support.tiny import TINY


@pytest.fixture(autouse=True)
def no_code_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace and differentiate as ever, but run the graphs in Python: that needs no C++ compiler."""
    torch._dynamo.reset()
    traced = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr("cl_clipfit.clip.encoders.compiled.torch.compile", traced)


def loss_and_gradients(model: CLIPClassifier, images: Tensor) -> dict[str, Tensor]:
    chosen = select_clipfit(model.clip)
    trained = model.train_only([*chosen.text, *chosen.image])
    loss = nn.functional.cross_entropy(model(images), torch.arange(len(images)))
    found = torch.autograd.grad(loss, list(trained.values()))
    return {"loss": loss.detach(), **dict(zip(trained, found, strict=True))}


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten() for n, g in gradients.items() if n != "loss"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["plain", "quick", "recompute"])
def test_gradients_are_those_without(kind: str, precision: Any) -> None:
    model = build(quick_gelu=kind == "quick")
    model.precision, model.recompute = precision, kind == "recompute"
    model.add_classes(NAMES)
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = loss_and_gradients(model, images)
    other = copy.deepcopy(model)
    other.compiles = True
    found = loss_and_gradients(other, images)
    assert other.compile_seconds > 0
    assert model.compile_seconds == 0
    torch.testing.assert_close(found["loss"], expected["loss"], rtol=1e-3, atol=1e-6)
    model.precision = "fp32"
    exact = flat(loss_and_gradients(model, images))
    off = (flat(found) - exact).norm() / exact.norm()
    rounding = (flat(expected) - exact).norm() / exact.norm()
    assert off < (1e-5 if precision == "fp32" else 1.5 * rounding)


def test_a_shape_is_compiled_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    model.compiles = True
    model.add_classes(NAMES)
    loss_and_gradients(model, torch.randn(2, 3, 16, 16))
    taken = model.compile_seconds
    loss_and_gradients(model, torch.randn(2, 3, 16, 16))
    assert model.compile_seconds == taken
    with torch.no_grad():  # scoring is left as it is
        model(torch.randn(4, 3, 16, 16))
    assert model.compile_seconds == taken
    loss_and_gradients(model, torch.randn(3, 3, 16, 16))
    assert model.compile_seconds > taken


@pytest.mark.parametrize("other", ["hook", "layer scale", "activation"])
def test_other_blocks_run_as_they_are(other: str) -> None:
    model = build(text={"ls_init_value": 0.5} if other == "layer scale" else None)
    model.add_classes(NAMES)
    for block in model.clip.transformer.resblocks:
        if other == "hook":
            block.ln_2.register_forward_hook(lambda module, inputs, output: 2 * output)
        if other == "activation":
            block.mlp.gelu = nn.ReLU()
    model.train_only([model.clip.transformer.resblocks[0].mlp.c_proj.bias])
    expected = model.text_features()
    model.compiles = True
    assert torch.equal(model.text_features(), expected)
    assert model.compile_seconds == 0


def test_another_image_tower_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = build(vision={"pool_type": "tok", "attentional_pool": True})
    model.compiles = True
    with caplog.at_level(logging.INFO):
        model.image_features(torch.randn(1, 3, 16, 16))
        model.image_features(torch.randn(1, 3, 16, 16))
    assert caplog.text.count("not an open_clip ViT and is not compiled") == 1


def test_a_compiler_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no g++ here\nmore of it")

    broken_compile = functools.partial(torch.compile, backend=broken)
    monkeypatch.setattr("cl_clipfit.clip.encoders.compiled.torch.compile", broken_compile)
    model = build()
    model.compiles = True
    model.add_classes(NAMES)
    with pytest.raises(UserError, match=r"^--compile: .*compiler fails.*omit it$") as raised:
        loss_and_gradients(model, torch.randn(2, 3, 16, 16))
    assert "no g++ here" in str(raised.value)


def test_the_run_reports_what_it_took(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*TINY, "--strategy", "clipfit", "--tasks", "1", "--batch-size", "48"]  # one shape
    results = []
    for more in (["--compile"], ["--fresh"]):
        assert main([*options, *more, "--output", str(tmp_path / more[0])]) == 0
        (file,) = (tmp_path / more[0]).glob("*/result.json")
        results.append(json.loads(file.read_text()))
    assert "torch.compile took" in capsys.readouterr().err
    assert results[0]["compile_seconds"] > 0
    assert results[1]["compile_seconds"] is None
    last = [result["metrics"]["last_accuracy"] for result in results]
    assert last[0] == pytest.approx(last[1], abs=1.0)
