"""The bank: the trained parameters of each task, on disk, with checked hashes."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save
from torch import Tensor

from cl_clipfit.bank.delta import Delta, LazyValues, Tunable
from cl_clipfit.bank.index import INDEX, SCHEMA, IndexFile, Kind, describe_identity, identity_of
from cl_clipfit.bank.tensor_files import (
    difference_of_shapes,
    file_name,
    prepared,
    read_tensors,
    shapes,
)
from cl_clipfit.errors import UserError
from cl_clipfit.storage.files import sha256, write_atomic, writing


class DeltaBank:
    """The trained values of every task, in a folder; made by `create` or `open`.

    `task-001.safetensors` holds the values, `task-001-host.safetensors` those of the base method of
    a merge, `task-001-statistics.safetensors` what routing needs. `index.json` lists
    sizes and SHA-256 hashes, and is written last: files it does not list do not belong to the
    bank, so that a process killed at any moment leaves the bank as it was.

    Attributes:
        folder: of the bank.
    """

    def __init__(self, folder: Path, file: IndexFile) -> None:
        self.folder, self._file = folder, file

    @property
    def index(self) -> dict[str, Any]:
        """The content of `index.json` and of the segments it lists; do not change it."""
        return self._file.content

    @classmethod
    def create(
        cls,
        folder: Path,
        base: Mapping[str, str | None],
        strategy: str,
        templates: Sequence[Any] = ("a photo of a {}.",),
    ) -> Self:
        """Create an empty bank; an earlier bank in the folder is removed, other files are kept.

        Args:
            folder: created if it is missing.
            base: the model's architecture, pretrained and weights_sha256.
            strategy: name of the method that trains.
            templates: prompt templates of the classes, or one sequence per class.

        Raises:
            UserError: the folder cannot be written.
            ValueError: `base` lacks a key.
        """
        bank = cls(Path(folder), IndexFile(Path(folder)))
        head = {
            "schema": SCHEMA,
            "base": identity_of(base),
            "strategy": strategy,
            "templates": list(templates),
            "selection": {},
        }
        bank._file.write(head, 0)
        with writing(folder):
            for pattern in ("task-*.safetensors", "index-*.json"):
                for stale in bank.folder.glob(pattern):
                    stale.unlink()
        return bank

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read a bank's index; `load` and `verify` check the tensors.

        Raises:
            UserError: there is no bank, or its index is damaged.
        """
        return cls(Path(folder), IndexFile.read(Path(folder)))

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Self:
        """Open a bank that `save_pretrained` or `push_to_hub` wrote, and verify its files.

        Args:
            name: a folder, that of a run, or ORG/REPO on a model hub, which is downloaded.

        Raises:
            UserError: there is no bank, it cannot be downloaded, or a file is damaged.
        """
        from cl_clipfit.bank.sharing import find_bank

        bank = cls.open(find_bank(name))
        bank.verify(finite=True)
        return bank

    def save_pretrained(self, folder: str | Path) -> None:
        """Write an adapter folder in the manner of PEFT: a configuration, the bank, a model card.

        Raises:
            UserError: the folder holds something else, or a file of the bank is damaged.
        """
        from cl_clipfit.bank.sharing import save_bank

        save_bank(self, Path(folder))

    def push_to_hub(self, repository: str, private: bool = False) -> str:
        """Upload the adapter folder to a model hub, as ORG/REPO; return its address.

        Raises:
            UserError: the hub refuses it, or cannot be reached.
        """
        from cl_clipfit.bank.sharing import push_bank

        return push_bank(self, repository, private)

    def __len__(self) -> int:
        return len(self.index["tasks"])

    def append(
        self,
        values: Mapping[str, Tensor],
        classes: Sequence[str],
        parents: Iterable[str] = (),
        host: Mapping[str, Tensor] | None = None,
        statistics: Mapping[str, Tensor] | None = None,
        head: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Add a task, atomically: if this fails, the bank is unchanged.

        Args:
            values: trained values by parameter name; half precision becomes float32, exactly. None
                if there is a head.
            classes: names of the task's classes.
            parents: its origins.
            host: values of the base method of a merge, with the same names and shapes.
            statistics: tensors with any names and shapes.
            head: the sums of a closed-form head after the task, of any types.

        Raises:
            ValueError: no values and no head, names or shapes unlike those of the first task, or
                float64, which would be rounded.
            UserError: the folder cannot be written.
        """
        task, stored, files = len(self) + 1, {"values": prepared(values)}, {}
        selection = self.index["selection"] or shapes(stored["values"])
        if not selection and not head:
            raise ValueError(f"task {task} trained no parameter: there is nothing to store")
        if host is not None:
            stored["host"] = prepared(host)
        for kind, tensors in stored.items():
            if wrong := difference_of_shapes(shapes(tensors), selection):
                raise ValueError(f"{kind} of task {task} do not fit the bank: {wrong}")
        if not selection:
            del stored["values"]
        if statistics is not None:
            stored["statistics"] = prepared(statistics)
        if head:
            stored["head"] = {name: value.cpu().contiguous() for name, value in head.items()}
        for kind, tensors in stored.items():
            name, data = file_name(task, kind), save(tensors)
            write_atomic(self.folder / name, data)
            files[kind] = {"name": name, "sha256": sha256(data), "bytes": len(data)}
        record = {"task": task, "classes": list(classes), "parents": list(parents), "files": files}
        self._file.write({**self.index, "selection": selection}, len(self), record)

    def keep(self, tasks: int) -> None:
        """Remove all but the first `tasks`.

        Raises:
            UserError: the bank holds fewer, or the folder cannot be written.
        """
        if len(self) < tasks:
            raise UserError(f"the bank {self.folder} holds {len(self)} tasks, not {tasks}")
        if len(self) > tasks:
            selection = self.index["selection"] if tasks else {}
            self._file.write({**self.index, "selection": selection}, tasks)

    def load(self, task: int, kind: Kind = "values") -> dict[str, Tensor]:
        """Read a task's tensors, on the CPU.

        Args:
            task: numbered from 1.
            kind: "values", "host", "statistics" or "head".

        Raises:
            UserError: no such task or kind, or the file is damaged.
        """
        files = self._record(task)["files"]
        if kind not in files:
            raise UserError(
                f"task {task} of the bank {self.folder} has no {kind}, only {', '.join(files)}"
            )
        free = kind in ("statistics", "head")  # of any names and shapes
        path, selection = self.folder / file_name(task, kind), self.index["selection"]
        return read_tensors(path, files[kind], None if free else selection)

    def lazy(self, task: int, kind: Kind = "values") -> "LazyValues":
        """Return a task's tensors, each read when it is asked for; verified now; errors as `load`.

        So a merge of many whole models needs the memory of one tensor of each.
        """
        self.load(task, kind)  # lets go of it again
        return LazyValues(self.folder / file_name(task, kind), list(self.index["selection"]))

    def delta(self, task: int, kind: Kind = "values") -> Delta:
        """Return the parameters that a task (from 1) trained; errors as `load`."""
        record = self._record(task)
        return Delta(task, list(record["classes"]), list(record["parents"]), self.load(task, kind))

    def verify(self, finite: bool = False) -> None:
        """Read every file of the bank.

        Args:
            finite: also refuse NaN and infinite values.

        Raises:
            UserError: a file is damaged, or holds values that `finite` refuses.
        """
        for record in self.index["tasks"]:
            for kind in record["files"]:
                for name, value in self.load(record["task"], kind).items():
                    if finite and not torch.isfinite(value).all():
                        file = self.folder / file_name(record["task"], kind)
                        raise UserError(f"{file}: {name} holds NaN or infinite values")

    def check_base(self, identity: Any) -> None:
        """Refuse a model other than the one the bank was trained on.

        Args:
            identity: a `ModelIdentity`, a mapping with the same keys, or None if unknown.

        Raises:
            UserError: the architecture or the weights differ.
        """
        base, model = self.index["base"], identity_of(identity)
        if any(base[key] != model[key] for key in ("architecture", "weights_sha256")):
            raise UserError(
                f"{self.folder / INDEX}: this bank belongs to {describe_identity(base)}, the model"
                f" is {describe_identity(model)}: load the model the bank was trained on"
            )

    @torch.no_grad()
    def apply(self, model: Tunable, task: int, kind: Kind = "values") -> None:
        """Load a task's values into the model; `remove` restores the pretrained ones.

        Raises:
            UserError: the model is not the bank's, or as `load`; the model is then unchanged.
        """
        self.check_base(model.identity)
        values = self.load(task, kind)
        for name, parameter in model.named_parameters():
            if name in values and name not in model.pretrained_values:
                model.pretrained_values[name] = parameter.detach().clone()
        model.load_values(values)

    def remove(self, model: Tunable) -> None:
        """Restore the pretrained values, bit for bit, of all parameters in the bank."""
        pretrained = model.pretrained_values
        names = [name for name in self.index["selection"] if name in pretrained]
        model.load_values({name: pretrained[name] for name in names})

    def _record(self, task: int) -> dict[str, Any]:
        if not 1 <= task <= len(self):
            raise UserError(f"the bank {self.folder} has no task {task}: it holds {len(self)}")
        return self.index["tasks"][task - 1]

    def index_files(self) -> list[Path]:
        """Return the files of the index, `index.json` last."""
        return self._file.paths()
