"""Untrusted weights are harmless: none runs code, no claim of theirs takes memory or time."""

import io
import json
import pickle
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from cl_clipfit.clip import create_classifier
from cl_clipfit.clip.loading.checkpoint import read_weights
from cl_clipfit.clip.loading.factory import hash_weights
from cl_clipfit.clip.loading.names import MINI_FOLDER
from cl_clipfit.clip.loading.untrusted_config import check_config
from cl_clipfit.clip.loading.untrusted_weights import check_checkpoint
from cl_clipfit.data.formats.feature_files import read_features
from cl_clipfit.data.formats.plain_pickle import PlainUnpickler
from cl_clipfit.errors import UserError
from tests.support.mischief import (
    LONG_NUMBER,
    MOST_MEMORY,
    NESTED,
    TERABYTES,
    Runs,
    fuzz,
    peak_bytes,
    refused,
    rewrite,
    unicode,
)


class Calls:
    """A class whose pickle calls what `torch.load` admits."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.called


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("suffix", ["pt", "bin", "npz"])
def test_weights_that_would_run_code_are_refused_and_do_not_run(
    tmp_path: Path, old: bool, suffix: str
) -> None:
    executed, file = tmp_path / "executed", tmp_path / f"w.{suffix}"
    for evil in ({"w": torch.ones(2), "x": Runs(executed)}, Runs(executed)):
        torch.save(evil, file, _use_new_zipfile_serialization=not old)
        line = refused(
            lambda: create_classifier(f"mini:{file}"),
            "asks to run .*, which is refused|no archive of arrays",
        )
        assert str(file) in line
    plain = tmp_path / "plain.pkl"
    plain.write_bytes(pickle.dumps(Runs(executed)))
    refused(lambda: create_classifier(f"mini:{plain}"))
    assert not executed.exists()


def test_a_folder_of_weights_is_checked_too(tmp_path: Path) -> None:
    model = json.loads((MINI_FOLDER / "mini.json").read_text())
    config = tmp_path / "open_clip_config.json"
    config.write_text(json.dumps({"model_cfg": model}))
    refused(lambda: create_classifier(f"local-dir:{tmp_path}"), "holds no weights")
    torch.save({"x": Runs(tmp_path / "executed")}, tmp_path / "model.bin")
    refused(lambda: create_classifier(f"local-dir:{tmp_path}"), "asks to run")
    assert not (tmp_path / "executed").exists()
    (tmp_path / "model.bin").unlink()
    weights = (MINI_FOLDER / "weights.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    create_classifier(f"local-dir:{tmp_path}")
    for tower, change in (
        ("vision_cfg", {"width": 10**9}), ("text_cfg", {"vocab_size": 10**12}),
        ("text_cfg", {"layers": 10**6}), ("vision_cfg", {"layers": 900, "width": 4096}),
        ("vision_cfg", {"image_size": [10**7, 10**7]}),
    ):  # fmt: skip
        large = {**model, tower: {**model[tower], **change}}
        config.write_text(json.dumps({"model_cfg": large}))
        refused(lambda: create_classifier(f"local-dir:{tmp_path}"), "far larger than its weights")
    for text in (
        "",
        "[" * 100_000,
        "{}",
        '{"model_cfg": 3}',
        '{"model_cfg": {"a": {"layers": ""}}}',
    ):
        config.write_text(text)
        refused(lambda: check_config(config, 1000), "not a model configuration")


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("text_cfg", {"context_length": 40_000}),
        ("text_cfg", {"context_length": 4_097, "width": 1, "vocab_size": 1}),
        ("text_cfg", {"mlp_ratio": 10**5}),
        ("text_cfg", {"hf_model_name": "x", "context_length": 40_000}),
        ("text_cfg", {"norm_kwargs": {"more": [[10**9]]}}),
        ("text_cfg", {"layers": 0, "width": 10**6}),
        ("multimodal_cfg", {"context_length": 40_000}),
        ("multimodal_cfg", {"vocab_size": 10**6}),
        ("vision_cfg", {"image_size": 20_000, "patch_size": 1}),
        ("vision_cfg", {"image_size": [20_000, 300], "patch_size": [1, 2]}),
        ("vision_cfg", {"image_size": 20_000, "patch_size": None}),
        ("vision_cfg", {"image_size": 10**6, "layers": [1, 1, 1, 1]}),
        ("vision_cfg", {"layers": [1, 1, 1, 1], "width": 4_096}),
        ("vision_cfg", {"timm_model_name": "x", "image_size": 20_000}),
        ("vision_cfg", {"patch_size": 10**4}),
        ("vision_cfg", {"attentional_pool": True, "attn_pooler_queries": 10**6}),
        ("", {"embed_dim": 10**6}),
        ("", {"embed_dim": 16_385, "vision_cfg": {"timm_model_name": "x"}, "text_cfg": {}}),
        ("", {"init_logit_scale": float("nan")}),
        ("", {"init_logit_scale": float("-inf")}),
        ("", {"init_logit_scale": -(10**400)}),
    ],
)
def test_a_model_far_larger_than_its_weights_is_refused(
    tmp_path: Path, part: str, change: dict[str, Any]
) -> None:
    file = tmp_path / "open_clip_config.json"
    model = json.loads((MINI_FOLDER / "mini.json").read_text())
    size = (MINI_FOLDER / "weights.safetensors").stat().st_size
    file.write_text(json.dumps({"model_cfg": model}))
    check_config(file, size)
    changed = {part: {**model.get(part, {}), **change}} if part else change
    file.write_text(json.dumps({"model_cfg": {**changed, **model, **changed}}))  # it comes first
    refused(lambda: check_config(file, size), "far larger than its weights")


@pytest.mark.parametrize(
    "change",
    [{"layers": -(10**6), "width": 1000}, {"layers": [-5, 5]}, {"width": "9" * 10**6},
     {"vocab_size": True}, {"image_size": [-224, -224]}],
)  # fmt: skip
def test_sizes_that_would_make_others_seem_small_are_refused(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    file = tmp_path / "open_clip_config.json"
    file.write_text(json.dumps({"model_cfg": {"vision_cfg": change}}))
    refused(lambda: check_config(file, 10**10), "not a model configuration")


def test_every_model_that_open_clip_ships_is_admitted(tmp_path: Path) -> None:
    file = tmp_path / "open_clip_config.json"
    for name in open_clip.list_models():
        file.write_text(json.dumps({"model_cfg": open_clip.get_model_config(name)}))
        check_config(file, 10**11)


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "coca_ViT-B-32", "ViT-B-16-SigLIP"])
def test_a_model_is_not_said_to_be_larger_than_it_is(tmp_path: Path, name: str) -> None:
    """Weights of a byte a value, which are smaller than any that are in use."""
    model = open_clip.get_model_config(name)
    options = {key: value for key, value in model.items() if key != "custom_text"}
    towers = {"coca": open_clip.CoCa, "ViT-B-16-S": open_clip.CustomTextCLIP}
    kind = next((kind for start, kind in towers.items() if name.startswith(start)), open_clip.CLIP)
    if "timm_model_name" in options["vision_cfg"]:
        options["vision_cfg"] = {}  # open_clip's own, of the same size
    with torch.device("meta"):
        values = sum(p.numel() for p in kind(**options).parameters())
    file = tmp_path / "open_clip_config.json"
    file.write_text(json.dumps({"model_cfg": options}))
    check_config(file, values)
    refused(lambda: check_config(file, values // 2), "far larger than its weights")


@pytest.mark.parametrize("place", ["text_cfg", "vision_cfg", "custom"])
def test_a_model_that_brings_code_is_refused(tmp_path: Path, place: str) -> None:
    """The tokenizer of such a folder could be any Python file in it."""
    folder = tmp_path / "model"
    shutil.copytree(MINI_FOLDER, folder)
    weights = next(f for f in folder.iterdir() if f.suffix == ".safetensors")
    config = {"model_cfg": json.loads((MINI_FOLDER / "mini.json").read_text())}
    file = folder / "open_clip_config.json"
    file.write_text(json.dumps(config))
    check_config(file, weights.stat().st_size)
    part = config["model_cfg"].setdefault(place, {})
    part["hf_tokenizer_name"] = "x"
    part["tokenizer_kwargs"] = {"more": [{"trust_remote_code": True}]}
    file.write_text(json.dumps(config))
    line = refused(lambda: check_config(file, weights.stat().st_size))
    assert "trust_remote_code" in line
    with pytest.raises(UserError, match="trust_remote_code"):
        create_classifier(f"local-dir:{folder}")
    part["tokenizer_kwargs"] = {"trust_remote_code": False}
    file.write_text(json.dumps(config))
    check_config(file, weights.stat().st_size)


def test_what_comes_from_the_hub_is_checked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = json.loads((MINI_FOLDER / "mini.json").read_text())
    config, weights = tmp_path / "open_clip_config.json", tmp_path / "open_clip_model.bin"
    config.write_text(json.dumps({"model_cfg": model}))

    def fetch(name: str, filename: str = "", **options: Any) -> str:
        return str(config if filename else weights)

    for module in ("pretrained", "factory"):
        monkeypatch.setattr(f"open_clip.{module}.download_pretrained_from_hf", fetch)
    torch.save({"x": Runs(tmp_path / "executed")}, weights)
    refused(lambda: create_classifier("hf-hub:untrusted/model"), "asks to run")
    assert not (tmp_path / "executed").exists()
    state = safetensors.torch.load_file(MINI_FOLDER / "weights.safetensors")
    torch.save(state, weights)
    expected = hash_weights(create_classifier("mini").clip)
    assert hash_weights(create_classifier("hf-hub:untrusted/model").clip) == expected


@pytest.mark.parametrize("old", [False, True])
def test_weights_as_others_save_them_are_read(tmp_path: Path, old: bool) -> None:
    state = safetensors.torch.load_file(MINI_FOLDER / "weights.safetensors")
    expected = hash_weights(create_classifier("mini").clip)
    options = {"_use_new_zipfile_serialization": not old}
    half = {name: value.half() for name, value in state.items()}
    module = torch.nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    training = {"epoch": 3, "name": "x", "optimizer": optimiser.state_dict(), "state_dict": state}
    parameters = {f"module.{n}": torch.nn.Parameter(v) for n, v in state.items()}
    for content in (state, training, parameters):
        torch.save(content, tmp_path / "w.pt", **options)
        assert hash_weights(create_classifier(f"mini:{tmp_path / 'w.pt'}").clip) == expected
    torch.save(half, tmp_path / "half.pt", **options)
    check_checkpoint(tmp_path / "half.pt")


def test_torchscript_is_not_loaded_as_code(tmp_path: Path) -> None:
    file = tmp_path / "ViT-B-32.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    line = refused(lambda: create_classifier(f"ViT-B-32-quickgelu:{file}"), "TorchScript")
    assert "is not run" in line and "ViT-B-16-quickgelu:openai" in line


def test_weights_that_claim_more_than_they_hold(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"

    def check(match: str) -> None:
        refused(lambda: create_classifier(f"mini:{file}"), match)

    torch.save({"w": torch.ones(1).expand(10**6, 10**7)}, file)  # one value, said to be 40 TB
    check("made of 1 values")
    torch.save(
        {"w": torch.ones(1).expand(10**6, 10**7)}, file, _use_new_zipfile_serialization=False
    )
    check("made of 1 values")
    for evil in (Calls(bytearray, 10**10), Calls(torch.FloatTensor, 10**10), {((),) * 3: 1}):
        torch.save(evil, file)
        check("refused|not a name")
    torch.save({"w": torch.zeros(1_000_000)}, file)
    rewrite(file, lambda name, data: data, zipfile.ZIP_DEFLATED)
    check("that unpack to")
    torch.save({"w": torch.rand(1000)}, file)
    rewrite(file, lambda name, data: data[:100] if name.endswith("/data/0") else data)
    check("fewer values than it says")
    torch.save({"w": torch.rand(1000)}, file)
    file.write_bytes(file.read_bytes()[:2000])
    check("cannot load")
    remembered = b"\x80\x02]r\xff\xff\xff\x7f."  # a list, kept as the object of number 2**31 - 1
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("w/data.pkl", remembered)
    assert refused(lambda: create_classifier(f"mini:{file}"))
    before = peak_bytes()
    assert PlainUnpickler(io.BytesIO(remembered)).load() == []
    assert peak_bytes() - before < MOST_MEMORY
    for evil in ({((),) * 3: 1}, bytearray(9)):
        with pytest.raises((pickle.UnpicklingError, KeyError)):
            PlainUnpickler(io.BytesIO(pickle.dumps(evil, protocol=5))).load()


def weights(
    key: bytes = unicode("0"),
    count: bytes = b"K\4",
    shape: bytes = b"K\4\x85",
    strides: bytes = b"K\1\x85",
    more: bytes = b"",
    order: bytes = b")",
) -> bytes:
    """Return a pickle of one tensor, parts of which are other opcodes."""
    storage = b"(" + unicode("storage") + b"ctorch\nFloatStorage\n" + key + unicode("cpu") + count
    ordered = b"\x89ccollections\nOrderedDict\n" + order + b"R"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + more + b"tQK\0" + shape + strides
    return b"\x80\2}" + unicode("w") + tensor + ordered + b"tRs."


def old_file(content: bytes, keys: bytes = b"\x80\2](" + unicode("0") + b"e.") -> bytes:
    parts: tuple[Any, ...] = (0x1950A86A20F9469CFC6C, 1001, {})
    head = b"".join(pickle.dumps(part, 2) for part in parts)
    return head + content + keys + struct.pack("<q4f", 4, 1, 2, 3, 4)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"key": NESTED},
        {"key": unicode("9" * 200)},
        {"key": b"K\0"},
        {"count": NESTED},
        {"count": LONG_NUMBER},
        {"shape": NESTED},
        {"shape": NESTED + b"\x85"},
        {"shape": b"(" + LONG_NUMBER * 1_000 + b"t"},
        {"shape": b"(" + b"K\1" * 65 + b"t", "strides": b"(" + b"K\1" * 65 + b"t"},
        {"strides": NESTED},
        {"strides": b"\x8a\5\0\0\0\0\1\x85"},  # 16 GB lie between one value and the next
        {"strides": b")"},
        {"order": b"(](" + NESTED + b"K\1\x86et"},
        {"order": b")R](" + NESTED + b"K\1\x86eb)"},
        {"more": b"(" + NESTED + b"K\0K\4t"},
    ],
)
def test_weights_of_endless_tuples_and_numbers_are_refused_at_once(
    tmp_path: Path, change: dict[str, bytes], old: bool
) -> None:
    file = tmp_path / "w.pt"
    if old:
        file.write_bytes(old_file(weights(**{"more": b"N", **change})))
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("w/data.pkl", weights(**change))
            archive.writestr("w/version", b"3\n")
            archive.writestr("w/data/0", struct.pack("<4f", 1, 2, 3, 4))
    if change:
        refused(lambda: check_checkpoint(file), "cannot load")
    else:
        check_checkpoint(file)
        assert torch.load(file, weights_only=True)["w"].tolist() == [1, 2, 3, 4]


def test_keys_of_old_weights_are_texts(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    for keys in (b"\x80\2](" + NESTED + b"e.", b"\x80\2" + unicode("0") + b"."):
        file.write_bytes(old_file(weights(more=b"N"), keys))
        refused(lambda: check_checkpoint(file), "nothing that torch.save writes")
    numbers = b"".join(
        b"\x8a\x10" + (n * (2**61 - 1) + 2**100).to_bytes(16, "little") + b"N" for n in range(4)
    )  # all of one hash
    file.write_bytes(old_file(b"\x80\2}(" + numbers + b"u."))
    refused(lambda: check_checkpoint(file), "a key that is not a name")


def test_weights_are_found_whatever_the_case_of_their_name(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("w/DATA.PKL", pickle.dumps(Runs(tmp_path / "executed"), 2))
    refused(lambda: check_checkpoint(file), "asks to run")


def test_a_program_that_only_pytorch_finds_in_an_archive_does_not_run(tmp_path: Path) -> None:
    """Python's reader takes the last archive of a file; PyTorch's may take another one."""
    file, executed = tmp_path / "w.pt", tmp_path / "executed"
    torch.save({"w": Runs(executed)}, file)
    evil = file.read_bytes()
    torch.save({"w": torch.ones(4)}, file)
    good = file.read_bytes()
    for content in (evil + good, good + evil):
        file.write_bytes(content)
        assert refused(lambda: create_classifier(f"mini:{file}"))
    assert not executed.exists()


def forged(header: Any, data: bytes = bytes(16), length: int | None = None) -> bytes:
    """Return a safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(shape: list[int], start: int = 0, end: int = 16, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


FORGED = {
    "a header of 10 TB": forged({}, length=TERABYTES),
    "a header beyond the file": forged({"w": tensor([4])}, length=500),
    "a header of no length": bytes(8),
    "no header": b"",
    "10 TB of values": forged({"w": tensor([TERABYTES // 4], 0, TERABYTES)}),
    "more values than bytes": forged({"w": tensor([5])}),
    "a shape beyond numbers": forged({"w": tensor([2**40, 2**40])}),
    "a negative shape": forged({"w": tensor([-4])}),
    "overlaps": forged({"v": tensor([2], 0, 8), "w": tensor([3], 4, 16)}),
    "a hole": forged({"v": tensor([1], 0, 4), "w": tensor([2], 8, 16)}),
    "beyond its end": forged({"w": tensor([8], 0, 32)}),
    "backwards": forged({"w": tensor([4], 16, 0)}),
    "an unknown type": forged({"w": tensor([4], dtype="X99")}),
    "no mapping": forged([1]),
    "deep": forged(b"[" * 100_000),
    "no JSON": forged(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("what", FORGED)
def test_forged_safetensors_are_refused(tmp_path: Path, what: str) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(FORGED[what])
    refused(lambda: create_classifier(f"mini:{file}"), "cannot load")
    refused(lambda: read_features(file), "cannot be read")


def test_damaged_weights_never_surprise(tmp_path: Path) -> None:
    data = safetensors.torch.save({"a": torch.ones(3, 2), "b": torch.zeros(5).half()})
    file = tmp_path / "w.safetensors"
    fuzz(file, data, 200, lambda: check_checkpoint(file))
    for old in (False, True):
        torch.save({"a": torch.ones(3, 2)}, file, _use_new_zipfile_serialization=not old)
        file = tmp_path / "w.pt"
        data = (tmp_path / "w.safetensors").read_bytes()
        fuzz(file, data, 150, lambda file=file: read_weights(file))  # type: ignore[misc]
