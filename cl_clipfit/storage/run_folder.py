"""The run folder: its name, and its files, which are written atomically."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_clipfit.config.command import MERGED_FROM, read_config
from cl_clipfit.config.parsing import format_setting
from cl_clipfit.errors import UserError, is_file
from cl_clipfit.storage.files import (
    csv_text,
    is_temporary,
    removing,
    render_json,
    write_atomic,
    write_yaml,
    writing,
)
from cl_clipfit.storage.lock import require
from cl_clipfit.storage.manifest import CHECKPOINTS, MANIFEST, write_manifest
from cl_clipfit.storage.result import RESULT, SCHEMA, read_result

if TYPE_CHECKING:
    from cl_clipfit.storage.checkpoints import Checkpoints

CONFIG = "config.yaml"
MATRIX = "accuracy_matrix.csv"
STATE = "state.safetensors"  # of a run that can be extended
BANK = "bank"  # folder
PREDICTIONS = "predictions"  # folder
THUMBNAILS = "thumbnails"  # folder
REPORT = "report.html"
_FOLDERS = (BANK, CHECKPOINTS, PREDICTIONS, THUMBNAILS)
BANK_EVAL = "bank-eval.json"  # written by `run.py bank eval`
HISTORY = "history.jsonl"
CALIBRATION = "calibration.json"
NAN_BATCH = "nan-batch.json"  # of a run that stopped on a NaN or infinite loss
_LONGEST = 60  # bytes of a file's name that a name or settings take
DIGITS = 8  # of a run's digest in its folder's name; older versions stored only these
_ROUNDING = ("micro_batch", "compile")
# Files that a run and the commands on it write; a repeated run removes them, and its bank too.
LEFT_BEHIND = (
    RESULT, MATRIX, STATE, "curves.*", "what_moved.*", "bank-*.*", "landscape-*.*", "plane-*.*",
    f"{BANK}/index.json", f"{BANK}/index-*.json", f"{BANK}/task-*.safetensors",
    f"{CHECKPOINTS}/*.safetensors", f"{CHECKPOINTS}/*.part", f"{PREDICTIONS}/row-*.npz",
    f"{THUMBNAILS}/*.png", REPORT, HISTORY, CALIBRATION, MANIFEST, NAN_BATCH,
)  # fmt: skip


class RunFolder:
    """One run's folder, `SCENARIO-STRATEGY-sSEED[-DATA][-SETTINGS]-HASH/` under the output folder.

    The hash identifies the run: a folder that ends with it, named otherwise, is the same run's.

    Args:
        output: folder of all run folders.
        scenario: name of the stream.
        strategy: name of the method.
        seed: of the run.
        digest: of all settings that affect results.
        changed: the settings that differ from the method's defaults.
        data: name of the user's data set.

    Attributes:
        digest: of all settings that affect results; its first `DIGITS` are in the folder's name.
        changed: settings in which a resumed run differs from before, "name: old -> new".
        writes: whether this process writes it: of several that train, the first one.
    """

    changed: Sequence[str] = ()
    writes = True

    def __init__(
        self, output: Path, scenario: str, strategy: str, seed: int, digest: str,
        changed: Mapping[str, Any] | None = None, data: str = "",
    ) -> None:  # fmt: skip
        self.digest = digest
        settings = "+".join(f"{key}={format_setting(v)}" for key, v in (changed or {}).items())
        details = (file_name(data), file_name(settings), digest[:DIGITS])
        self.path = output / f"{scenario}-{strategy}-s{seed}-{'-'.join(filter(None, details))}"
        if not self.path.exists():
            same = sorted(output.glob(f"*-s{seed}-*{digest[:DIGITS]}"))
            self.path = next((path for path in same if path.is_dir()), self.path)

    def check_links(self) -> None:
        """Refuse symbolic links: the files in these folders are written and removed.

        Raises:
            UserError: the run's folder or one in it is a symbolic link.
        """
        for path in (self.path, *(self.path / name for name in _FOLDERS)):
            if path.is_symlink():
                raise UserError(f"{path} is a symbolic link: replace it by the folder itself")

    def finished_result(self) -> dict[str, Any] | None:
        """Return the result of a complete run, or None if there is none.

        Raises:
            UserError: the result cannot be read, or was made with other settings.
        """
        result = read_result(self.path / RESULT)
        if result is not None:
            self.check_digest(result["digest"])
        return result

    def has_digest(self, digest: str) -> bool:
        """Return whether a digest, as stored by this or an older version, is this run's."""
        return digest in (self.digest, self.digest[:DIGITS])

    def check_digest(self, digest: str) -> None:
        """Refuse a result or a checkpoint in the folder that was made with other settings.

        Raises:
            UserError: the digest is another run's.
        """
        if self.has_digest(digest):
            return
        if digest[:DIGITS] == self.digest[:DIGITS]:
            raise UserError(
                f"{self.path} holds a run with other settings, whose digest has the same prefix"
                f" ({digest[: 2 * DIGITS]}, not {self.digest[: 2 * DIGITS]}): choose another"
                " folder with --output"
            )
        raise UserError(
            f"{self.path} was made with other settings, since --force-resume resumed it with"
            " them: repeat the run with --fresh"
        )

    def rounding_changes(self, config: Mapping[str, Any]) -> list[str]:
        """Return the changed settings that affect results only by rounding, "name: old -> new"."""
        if not is_file(self.path / CONFIG):
            return []
        before = read_config(self.path / CONFIG, (MERGED_FROM,))
        return changed_settings(*({k: c.get(k) for k in _ROUNDING} for c in (before, config)))

    def checkpoints(self, warn: Callable[[str], None]) -> "Checkpoints":
        """Return the checkpoints of the run, which exist until it is finished."""
        from cl_clipfit.storage.checkpoints import Checkpoints  # imports PyTorch

        self.check_links()
        return Checkpoints(self.path, warn, self.writes)

    def begin(self, config: dict[str, Any]) -> None:
        """Create the folder, remove the files of an earlier run, and write `config.yaml`."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            for pattern in LEFT_BEHIND:
                for stale in self.path.glob(pattern):
                    stale.unlink()
        self.write_config(config)

    def begin_again(self, config: dict[str, Any]) -> None:
        """Rewrite `config.yaml`: a resumed run may have other settings."""
        with removing(self.path / NAN_BATCH):
            (self.path / NAN_BATCH).unlink(missing_ok=True)
        self.write_config(config)

    def write_config(self, config: dict[str, Any]) -> None:
        """Write `config.yaml`, the command that repeats the run."""
        write_yaml(self.path / CONFIG, config)

    def sweep(self) -> None:
        """Remove temporary files of a killed process; the caller holds the lock of the folder."""
        self.check_links()
        with writing(self.path):
            for folder in (self.path, *(self.path / name for name in _FOLDERS)):
                for stale in folder.glob(".*.*"):
                    if is_temporary(stale.name):
                        stale.unlink()

    def require(self) -> None:
        """Refuse to continue in a folder that was removed meanwhile: it would hold half a run.

        Raises:
            UserError: the folder is gone, or another process has created it again.
        """
        require(self.path)

    def save_result(self, result: dict[str, Any]) -> dict[str, Any]:
        """Write `accuracy_matrix.csv`, the manifest, and `result.json`, which completes the run."""
        self.require()  # writing would create the folder again
        if not (self.path / CONFIG).is_file():
            raise UserError(f"{self.path / CONFIG} has vanished during the run: repeat the command")
        matrix = result["accuracy_matrix"]
        header = ["after_task", *(f"task_{j}" for j in range(1, len(matrix[0]) + 1))]
        rows = [[t, *row] for t, row in enumerate(matrix)]
        write_atomic(self.path / MATRIX, csv_text(header, rows))
        content = {"schema": SCHEMA, "digest": self.digest, **result}
        data = render_json(content)
        write_manifest(self.path, {RESULT: data})
        write_atomic(self.path / RESULT, data)
        return content


class SharedFolder(RunFolder):
    """The folder of a run in a process that does not write it, beside the one that does."""

    writes = False

    def begin(self, config: dict[str, Any]) -> None:
        """Leave it to the other process."""

    def begin_again(self, config: dict[str, Any]) -> None:
        """Leave it to the other process."""

    def sweep(self) -> None:
        """Leave it to the other process."""

    def require(self) -> None:
        """Leave it to the other process."""

    def save_result(self, result: dict[str, Any]) -> dict[str, Any]:
        """Return the content of `result.json`."""
        return {"schema": SCHEMA, "digest": self.digest, **result}


def stream_name(scenario: str, data: Mapping[str, Any]) -> str:
    """Return the name of a stream, followed by that of the data set if the user brought it.

    Args:
        scenario: its name.
        data: origin of the data, as in `result.json`.

    Example:
        >>> stream_name("folder", {"name": "plants"}), stream_name("dtd", {})
        ('folder plants', 'dtd')
    """
    return " ".join(filter(None, (scenario, str(data.get("name") or ""))))


def file_name(text: str) -> str:
    """Return a text as a part of a file's name, cut if it is long.

    Example:
        >>> file_name("my plants/2024")
        'my_plants_2024'
    """
    text = re.sub(r"[^\w.=+-]+", "_", text)
    return text.encode()[:_LONGEST].decode(errors="ignore")


def changed_settings(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the settings that differ, "name: old -> new"; lists of options have no order."""
    changes = []
    for key in {**before, **after}:
        old, new = before.get(key), after.get(key)
        if key in ("plugin", "set"):
            gone, added = (
                sorted(set(one or ()) - set(other or ())) for one, other in ((old, new), (new, old))
            )
            old, new = ", ".join(gone) or None, ", ".join(added) or None
        if old != new:
            changes.append(f"{key}: {old} -> {new}")
    return changes
