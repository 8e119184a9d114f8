"""Banks as adapter folders: saved, fetched from a model hub, and published there.

The folder is laid out in the manner of PEFT: `adapter_config.json` names the base model and what is
changed in it, and the weights lie beside it, here the files of the bank.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_clipfit import __version__
from cl_clipfit.bank.index import INDEX
from cl_clipfit.clip.loading.hub import hub_reason, patient_hub
from cl_clipfit.clip.loading.licences import UNKNOWN, licence_of
from cl_clipfit.clip.loading.names import MINI
from cl_clipfit.errors import UserError, is_file
from cl_clipfit.storage.files import read_bytes, render_json, write_atomic
from cl_clipfit.storage.run_folder import BANK

if TYPE_CHECKING:
    from cl_clipfit.bank.store import DeltaBank

ADAPTER = "adapter_config.json"
CARD = "README.md"
KIND = "CL_CLIPFIT_DELTA_BANK"
_OF_BANKS = ("task-*.safetensors", "index-*.json")  # besides the index itself
_PATTERNS = (INDEX, ADAPTER, *_OF_BANKS)
_SHOWN = 20  # classes that the card names


def adapter_config(bank: "DeltaBank") -> dict[str, Any]:
    """Return the content of `adapter_config.json`."""
    base, index = bank.index["base"], bank.index
    return {
        "peft_type": KIND,
        "base_model_name_or_path": base_model(bank),
        "base_model_sha256": base["weights_sha256"],
        "inference_mode": True,
        "target_modules": sorted({name.rpartition(".")[0] or name for name in index["selection"]}),
        "strategy": index["strategy"],
        "tasks": [record["classes"] for record in index["tasks"]],
        "templates": index["templates"],
        "cl_clipfit_version": __version__,
    }


def base_model(bank: "DeltaBank") -> str:
    """Return the name of the model that a bank belongs to, as `--model` takes it."""
    base = bank.index["base"]
    architecture, pretrained = base["architecture"] or "unknown", base["pretrained"]
    return architecture if architecture == MINI else f"{architecture}:{pretrained or 'unknown'}"


def save_bank(bank: "DeltaBank", folder: Path) -> None:
    """Write a bank as an adapter folder.

    Raises:
        UserError: a file of the bank is damaged, the folder holds something else, or it cannot be
            written.
    """
    if folder.resolve() == bank.folder.resolve():
        raise UserError(f"{folder} is the bank's own folder: name another one")
    if is_file(folder):
        raise UserError(f"{folder} is a file: name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not is_file(folder / INDEX):
        raise UserError(f"{folder} holds other files: name a new folder")
    bank.verify()
    for stale in [file for pattern in _OF_BANKS for file in folder.glob(pattern)]:
        stale.unlink()
    for file in _files(bank):
        write_atomic(folder / file.name, read_bytes(file, file.stat().st_size))
    write_atomic(folder / ADAPTER, render_json(adapter_config(bank)))
    write_atomic(folder / CARD, _card(bank))


def _files(bank: "DeltaBank") -> Iterator[Path]:
    """Yield the files of a bank, the index last."""
    for record in bank.index["tasks"]:
        yield from (bank.folder / file["name"] for file in record["files"].values())
    yield from bank.index_files()


def find_bank(name: str | Path) -> Path:
    """Return the folder of a bank: a local one, that of a run, or one fetched from a model hub.

    Raises:
        UserError: there is none.
    """
    folder = Path(name)
    for place in (folder, folder / BANK):
        if is_file(place / INDEX):
            return place
    if is_file(folder, or_folder=True):
        kind = "an adapter of another library" if is_file(folder / ADAPTER) else "no bank"
        raise UserError(f"{folder}: {kind} is here: it has no {INDEX}")
    text = str(name)
    if text.count("/") != 1 or text.startswith(("/", ".")):
        raise UserError(f"{name}: there is no such folder, and a hub's name is ORG/REPO")
    return _fetch(text)


def _fetch(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        with patient_hub():
            folder = Path(snapshot_download(repository, allow_patterns=list(_PATTERNS)))
    except Exception as error:  # of whatever client the hub's library uses
        reason = hub_reason(error, "delta bank")
        raise UserError(f"cannot get the bank {repository} ({reason})") from error
    if not is_file(folder / INDEX):
        raise UserError(f"{repository}: the hub's repository holds no bank: it has no {INDEX}")
    return folder


def push_bank(bank: "DeltaBank", repository: str, private: bool) -> str:
    """Upload a bank to a model hub; return its address.

    Raises:
        UserError: the hub refuses it, or cannot be reached.
    """
    from huggingface_hub import HfApi

    if repository.count("/") != 1:
        raise UserError(f"{repository}: a hub's name is ORG/REPO")
    with tempfile.TemporaryDirectory() as folder:
        save_bank(bank, Path(folder))
        try:
            with patient_hub():
                api = HfApi()
                url = api.create_repo(repository, private=private, exist_ok=True)
                api.upload_folder(
                    repo_id=repository, folder_path=folder, commit_message="Upload delta bank"
                )
        except Exception as error:
            reason = hub_reason(error, "place for this bank")
            raise UserError(
                f"cannot publish {repository} ({reason}): log in with `hf auth login`, or"
                " set HF_TOKEN"
            ) from error
    return str(url)


def _card(bank: "DeltaBank") -> str:
    """Return a model card in Markdown, with the header that model hubs read."""
    model, licence = base_model(bank), licence_of(base_model(bank))
    stated = licence if licence != UNKNOWN else "see the publisher of the base model"
    tasks = bank.index["tasks"]
    rows = [f"| {r['task']} | {_names(r['classes'])} |" for r in tasks]
    lines = [
        "---", f"license: {licence.lower()}", f"base_model: {model}", "library_name: cl_clipfit",
        "tags:", "- clip", "- continual-learning", "- adapter", "---", "",
        f"# Delta bank of {bank.index['strategy']} on {model}", "",
        f"What {len(tasks)} tasks trained on top of `{model}`, one after another."
        f" Licence of the base model's weights: {stated}.", "",
        "| task | classes |", "| --- | --- |", *rows, "",
        "```python", "from cl_clipfit import DeltaBank, create_classifier", "",
        f'model = create_classifier("{model}")', 'bank = DeltaBank.from_pretrained("ORG/REPO")',
        f"bank.apply(model, task={len(tasks)})", "```", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _names(classes: list[str]) -> str:
    more = f" and {len(classes) - _SHOWN} more" if len(classes) > _SHOWN else ""
    return " ".join((", ".join(classes[:_SHOWN]) + more).replace("|", "\\|").split())
