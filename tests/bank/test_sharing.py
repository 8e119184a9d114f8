"""Banks are shared as adapter folders: on disk, and through a hub on this machine."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cl_clipfit import DeltaBank
from cl_clipfit.errors import UserError
from tests.support.banks import make, values
from tests.support.hub_server import hub

Repositories = dict[str, dict[str, bytes]]


@pytest.fixture
def repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repositories]:
    with hub() as (address, files):
        constants = "huggingface_hub.constants"
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(f"{constants}.ENDPOINT", address)
        for module in (constants, "huggingface_hub.file_download"):  # where 0.30 has it
            monkeypatch.setattr(f"{module}.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "secret")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield files


def test_a_saved_bank_is_the_same_bank_with_a_configuration(tmp_path: Path) -> None:
    bank = make(tmp_path / "bank")
    bank.save_pretrained(tmp_path / "shared")
    bank.save_pretrained(str(tmp_path / "shared"))  # again, into the same folder
    loaded = DeltaBank.from_pretrained(tmp_path / "shared")
    assert loaded.index == bank.index
    assert all(torch.equal(v, values(2)[n]) for n, v in loaded.load(2).items())
    config = json.loads((tmp_path / "shared/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "arch:tag"
    assert config["base_model_sha256"] == "ab" * 32
    assert config["peft_type"] == "CL_CLIPFIT_DELTA_BANK"
    assert config["target_modules"] == ["a", "z"]
    assert config["tasks"] == [["a", "é"]] * 2
    card = (tmp_path / "shared/README.md").read_text()
    assert card.startswith("---\nlicense: other\n")
    assert "| 2 | a, é |" in card


def test_the_folder_of_a_run_will_do(tmp_path: Path) -> None:
    make(tmp_path / "run" / "bank")
    assert len(DeltaBank.from_pretrained(tmp_path / "run")) == 2


def test_a_bank_travels_through_a_hub(tmp_path: Path, repositories: Repositories) -> None:
    bank = make(tmp_path / "bank")
    url = bank.push_to_hub("org/plants")
    assert url.endswith("/org/plants")
    assert {"adapter_config.json", "index.json", "README.md"} < {*repositories["org/plants"]}
    loaded = DeltaBank.from_pretrained("org/plants")
    assert loaded.folder != bank.folder
    assert loaded.index == bank.index
    assert all(torch.equal(v, values(1)[n]) for n, v in loaded.load(1).items())


def test_what_a_hub_refuses_is_said(
    tmp_path: Path, repositories: Repositories, monkeypatch: pytest.MonkeyPatch
) -> None:
    repositories["org/other"] = {"adapter_config.json": b"{}"}
    with pytest.raises(UserError, match="404: it has no such delta bank, or keeps it private"):
        DeltaBank.from_pretrained("org/nothing")
    with pytest.raises(UserError, match=r"org/other: .* holds no bank"):
        DeltaBank.from_pretrained("org/other")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(UserError, match=r"cannot publish org/plants .*401.* log in"):
        make(tmp_path / "bank").push_to_hub("org/plants")


def test_what_is_no_bank_is_refused(tmp_path: Path) -> None:
    bank, empty = make(tmp_path / "bank"), tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="no bank is here"):
        DeltaBank.from_pretrained(empty)
    (empty / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="an adapter of another library"):
        DeltaBank.from_pretrained(empty)
    with pytest.raises(UserError, match="hub's name is ORG/REPO"):
        DeltaBank.from_pretrained("nowhere")
    with pytest.raises(UserError, match="holds other files"):
        bank.save_pretrained(empty)
    with pytest.raises(UserError, match="own folder"):
        bank.save_pretrained(tmp_path / "bank")
    (file,) = (tmp_path / "bank").glob("task-002.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="damaged"):
        bank.save_pretrained(tmp_path / "shared")
    assert not (tmp_path / "shared").exists()
