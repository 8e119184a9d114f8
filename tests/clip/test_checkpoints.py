"""Files of weights as people save them: wrapped, prefixed, under any name, of another size."""

import argparse
import json
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from torch import Tensor

from cl_clipfit.clip import create_classifier
from cl_clipfit.clip.loading.checkpoint import read_weights
from cl_clipfit.clip.loading.factory import hash_weights
from cl_clipfit.clip.loading.names import MINI_FOLDER
from cl_clipfit.errors import UserError

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    return safetensors.torch.load_file(MINI_FOLDER / "weights.safetensors")


@pytest.fixture(scope="module")
def expected() -> str:
    return hash_weights(create_classifier("mini").clip)


def prefixed(prefix: str) -> Callable[[State], Any]:
    return lambda state: {f"{prefix}{name}": value for name, value in state.items()}


WRAPPED: dict[str, Callable[[State], Any]] = {
    "distributed": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "compiled, then distributed": prefixed("module._orig_mod."),
    "distributed, then compiled": prefixed("_orig_mod.module."),
    "of Lightning": lambda s: {"state_dict": prefixed("model.")(s), "hyper_parameters": {"lr": 1}},
    "attribute of a module": prefixed("backbone.clip."),
    "model": lambda s: {"model": s, "epoch": torch.tensor(3), "optimizer": {"state": {}}},
    "model_state_dict": lambda s: {"model_state_dict": s, "loss": 0.5},
    "twice": lambda s: {"model": {"state_dict": prefixed("module.")(s)}},
    "any other name": lambda s: {"net": s, "optimizer": {"state": {0: {"step": 3}}}},
    "ordered": OrderedDict,
    "of OpenAI": lambda s: {
        **s, "input_resolution": torch.tensor(32), "context_length": torch.tensor(16),
        "vocab_size": torch.tensor(49408),
    },
}  # fmt: skip


@pytest.mark.parametrize("what", WRAPPED)
def test_weights_are_found_in_what_people_save(
    what: str, state: State, expected: str, tmp_path: Path
) -> None:
    file = tmp_path / "w.pt"
    torch.save(WRAPPED[what](state), file)
    assert hash_weights(create_classifier(f"mini:{file}").clip) == expected


@pytest.mark.parametrize("name", ["w", "blob.5f3a", "W.SAFETENSORS", "w.pt", "w.bin"])
def test_safetensors_are_known_by_their_content(
    name: str, state: State, expected: str, tmp_path: Path
) -> None:
    safetensors.torch.save_file(state, tmp_path / name)
    assert hash_weights(create_classifier(f"mini:{tmp_path / name}").clip) == expected


@pytest.mark.parametrize("name", ["w", "W.PT", "w.safetensors", "W.PTH", "w.npy.ckpt"])
def test_files_of_pytorch_are_known_by_their_content(
    name: str, state: State, expected: str, tmp_path: Path
) -> None:
    for options in ({}, {"pickle_protocol": 4}, {"_use_new_zipfile_serialization": False}):
        torch.save({"state_dict": state}, tmp_path / name, **options)
        assert hash_weights(create_classifier(f"mini:{tmp_path / name}").clip) == expected


def test_tensors_are_read_as_pytorch_reads_them(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    content = {
        "view": base[3:15].view(3, 4).T,
        "same storage": base,
        "half": torch.tensor([1, 2.5]).half(),
        "bfloat": torch.tensor([1, 2.5]).bfloat16(),
        "integers": torch.tensor([[1], [2]]),
        "scalar": torch.tensor(4.6),
        "parameter": torch.nn.Parameter(torch.ones(2, 3)),
        "flags": torch.tensor([True, False]),
    }
    file = tmp_path / "w.pt"
    for protocol in (2, 3, 4, 5):
        torch.save(content, file, pickle_protocol=protocol)
        read = read_weights(file)
        assert list(read) == list(content)
        for name, value in content.items():
            assert read[name].dtype == value.dtype and torch.equal(read[name], value)


@pytest.mark.parametrize(
    "beside",
    [
        np.float64(0.5),
        np.arange(3),
        argparse.Namespace(lr=1),
        Path("runs"),
        {1, 2},
        b"bytes",
        torch.float16,
    ],
)
def test_what_lies_beside_the_weights_is_refused_with_advice(
    beside: Any, state: State, tmp_path: Path
) -> None:
    for protocol in (2, 4):
        torch.save(
            {"state_dict": state, "more": beside}, tmp_path / "w.pt", pickle_protocol=protocol
        )
        with pytest.raises(UserError, match="save the weights alone") as caught:
            create_classifier(f"mini:{tmp_path / 'w.pt'}")
        assert str(caught.value).startswith(f"cannot load {tmp_path / 'w.pt'}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(3), "holds no weights by name"),
        ([torch.ones(3)], "holds no weights by name"),
        ({"epoch": 3}, "holds no weights by name"),
        ({"a": {"x": torch.ones(1)}, "b": {"x": torch.ones(1)}}, "holds no weights by name"),
    ],
)
def test_a_checkpoint_without_weights_is_said_to_be_one(
    content: Any, message: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match=message):
        create_classifier(f"mini:{tmp_path / 'w.pt'}")


def test_other_pickles_are_refused_with_a_true_reason(state: State, tmp_path: Path) -> None:
    file = tmp_path / "w.pkl"
    file.write_bytes(pickle.dumps(state))
    with pytest.raises(UserError, match="cannot load"):
        create_classifier(f"mini:{file}")
    file.write_text("not weights")
    with pytest.raises(UserError, match="neither a safetensors file nor"):
        create_classifier(f"mini:{file}")
    with (tmp_path / "W.zip").open("wb") as opened:
        np.savez(opened, x=np.ones(3))
    with pytest.raises(UserError, match=r"its name must end in \.npz"):
        create_classifier(f"mini:{tmp_path / 'W.zip'}")


def test_an_old_file_of_a_new_pickle_protocol_is_refused_with_advice(
    state: State, tmp_path: Path
) -> None:
    options = {"_use_new_zipfile_serialization": False, "pickle_protocol": 4}
    torch.save(state, tmp_path / "w.pt", **options)
    with pytest.raises(UserError, match="refuses it: save the weights alone"):
        create_classifier(f"mini:{tmp_path / 'w.pt'}")


def test_an_error_names_the_first_unexpected_and_the_first_missing_name(
    state: State, tmp_path: Path
) -> None:
    file = tmp_path / "w.pt"
    renamed = {name.replace("visual.", "vision_tower."): value for name, value in state.items()}
    torch.save(renamed, file)
    with pytest.raises(UserError) as caught:
        create_classifier(f"mini:{file}")
    message = str(caught.value)
    assert "unexpected 'vision_tower." in message and "missing 'visual." in message
    assert message.count(" others") == 2 and len(message) < 400
    torch.save({name: value for name, value in state.items() if name != "logit_scale"}, file)
    with pytest.raises(UserError, match=r"mini: missing 'logit_scale'$"):
        create_classifier(f"mini:{file}")
    torch.save({**state, "text_projection": torch.ones(2, 3)}, file)
    with pytest.raises(UserError, match=r"'text_projection' has shape \[2, 3\] in the file and"):
        create_classifier(f"mini:{file}")
    tower = {name: value for name, value in state.items() if name.startswith("visual.")}
    torch.save(tower, file)
    with pytest.raises(UserError, match="missing") as caught:
        create_classifier(f"mini:{file}")
    assert "unexpected" not in str(caught.value)  # `visual.` is no prefix to be removed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_in_half_precision_of_another_size_are_refused_in_one_line(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    larger = open_clip.create_model("ViT-S-32-alt", force_image_size=256)
    file = tmp_path / "w.pt"
    torch.save({n: v.to(dtype) for n, v in larger.state_dict().items()}, file)
    with pytest.raises(UserError) as caught:
        create_classifier(f"ViT-S-16:{file}")
    assert str(caught.value).endswith("another width: the weights are of another architecture")
    create_classifier(f"ViT-S-32-alt:{file}")


def damaged(value: float, *names: str) -> Callable[[State], State]:
    """Return a change of weights: the last value of the named tensors, or of all."""

    def change(state: State) -> State:
        changed = {name: tensor.clone() for name, tensor in state.items()}
        for name in names or changed:
            changed[name].view(-1)[-1] = value
        return changed

    return change


def half(scale: float) -> Callable[[State], State]:
    """Return a conversion to fp16 after which one tensor is too large for it."""
    name = "visual.conv1.weight"
    return lambda s: {n: (v * scale if n == name else v).half() for n, v in s.items()}


NOT_FINITE: dict[str, tuple[Callable[[State], State], str]] = {
    "NaN in the image tower": (damaged(float("nan"), "visual.proj"), "visual.proj"),
    "infinite": (damaged(float("inf"), "visual.proj"), "visual.proj"),
    "minus infinite": (damaged(-float("inf"), "ln_final.bias"), "ln_final.bias"),
    "NaN in the text tower": (damaged(float("nan"), "text_projection"), "text_projection"),
    "in two": (damaged(float("nan"), "token_embedding.weight", "ln_final.weight"), "token_embed"),
    "in all": (damaged(float("nan")), "positional_embedding"),
    "overflow of fp16": (half(1e9), "visual.conv1.weight"),
    "overflow of fp32": (
        lambda s: {**s, "visual.proj": s["visual.proj"].double() * 1e300},
        "visual.proj",
    ),
    "a scale that is not a logarithm": (damaged(100.0, "logit_scale"), "exp(logit_scale)"),
}


@pytest.mark.parametrize("what", NOT_FINITE)
def test_weights_that_are_not_finite_are_refused_when_they_are_loaded(
    what: str, state: State, tmp_path: Path
) -> None:
    change, name = NOT_FINITE[what]
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"model_cfg": json.loads((MINI_FOLDER / "mini.json").read_text())}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(change(state), tmp_path / "w.pt")
    safetensors.torch.save_file(change(state), folder / "open_clip_model.safetensors")
    for model in (f"mini:{tmp_path / 'w.pt'}", f"local-dir:{folder}"):
        with pytest.raises(UserError, match=f"'{re.escape(name)}.* has NaN or infinite") as caught:
            create_classifier(model)
        assert model.partition(":")[2] in str(caught.value)
