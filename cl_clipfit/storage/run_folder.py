"""The run folder: its name, its files, written whole or not at all."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_clipfit.config.command import read_config
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
from cl_clipfit.storage.manifest import CHECKPOINTS, write_manifest
from cl_clipfit.storage.result import RESULT, SCHEMA, read_result

if TYPE_CHECKING:
    from cl_clipfit.storage.checkpoints import Checkpoints

MERGED_FROM = "merged_from"  # in the config.yaml of a run that was merged from another one
CONFIG = "config.yaml"
NAN_BATCH = "nan-batch.json"  # of a run that stopped because its loss was no number
DIGITS = 8  # of a run's digest in its folder's name; older versions kept no more of it
_ROUNDING = ("micro_batch", "compile")
# What a run and the commands on it leave, and a repeated run takes away; its bank goes too.
LEFT_BEHIND = (
    RESULT, "accuracy_matrix.csv", "curves.*", "what_moved.*", "bank-*.*", "landscape-*.*",
    "plane-*.*", "bank/index.json", "bank/task-*.safetensors", "checkpoints/*.safetensors",
    "MANIFEST.sha256", NAN_BATCH,
)  # fmt: skip


class RunFolder:
    """One run's folder, `SCENARIO-STRATEGY-sSEED-HASH/` under the output folder.

    Attributes:
        digest: of all settings that change numbers; its first `DIGITS` are in the folder's name.
        changed: settings that a resumed run has not had before, "name: old -> new".
    """

    changed: Sequence[str] = ()

    def __init__(self, output: Path, scenario: str, strategy: str, seed: int, digest: str) -> None:
        self.digest = digest
        self.path = output / f"{scenario}-{strategy}-s{seed}-{digest[:DIGITS]}"

    def check_links(self) -> None:
        """Refuse folders that lead elsewhere: what is in them is written, and removed.

        Raises:
            UserError: the run's folder, the bank's, or that of the checkpoints, is a link.
        """
        for path in (self.path, self.path / "bank", self.path / CHECKPOINTS):
            if path.is_symlink():
                raise UserError(f"{path} is a link: put the folder in its place")

    def finished_result(self) -> dict[str, Any] | None:
        """Return the result of a complete run; None where there is none.

        Raises:
            UserError: a result that cannot be read, or that was made with other settings.
        """
        result = read_result(self.path / RESULT)
        if result is not None:
            self.check_digest(result["digest"])
        return result

    def has_digest(self, digest: str) -> bool:
        """Return whether a digest, as a run of this or an older version kept it, is this run's."""
        return digest in (self.digest, self.digest[:DIGITS])

    def check_digest(self, digest: str) -> None:
        """Refuse a result or a checkpoint in the folder that was made with other settings.

        Raises:
            UserError: it was.
        """
        if self.has_digest(digest):
            return
        if digest[:DIGITS] == self.digest[:DIGITS]:
            raise UserError(
                f"{self.path}: it holds a run with other settings, whose digest begins alike"
                f" ({digest[: 2 * DIGITS]}, not {self.digest[: 2 * DIGITS]}): choose another"
                " folder with --output"
            )
        raise UserError(
            f"{self.path}: it was made with other settings, since --force-resume went on with"
            " them: --fresh repeats the run"
        )

    def rounding_changes(self, config: Mapping[str, Any]) -> list[str]:
        """Name settings that `config.yaml` has not and that change numbers by rounding alone."""
        if not is_file(self.path / CONFIG):
            return []
        before = read_config(self.path / CONFIG, (MERGED_FROM,))
        return changed_settings(*({k: c.get(k) for k in _ROUNDING} for c in (before, config)))

    def checkpoints(self, warn: Callable[[str], None]) -> "Checkpoints":
        """Return what is kept of the run until it is finished; see `Checkpoints`."""
        from cl_clipfit.storage.checkpoints import Checkpoints  # with PyTorch

        self.check_links()
        return Checkpoints(self.path, warn)

    def begin(self, config: dict[str, Any]) -> None:
        """Create the folder, clear what an earlier run of the same settings left, write config."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            for pattern in LEFT_BEHIND:
                for stale in self.path.glob(pattern):
                    stale.unlink()
        self.write_config(config)

    def begin_again(self, config: dict[str, Any]) -> None:
        """Write `config.yaml` anew, where a resumed run may have other settings."""
        with removing(self.path / NAN_BATCH):
            (self.path / NAN_BATCH).unlink(missing_ok=True)
        self.write_config(config)

    def write_config(self, config: dict[str, Any]) -> None:
        """Write `config.yaml`, the command that repeats the run."""
        write_yaml(self.path / CONFIG, config)

    def sweep(self) -> None:
        """Remove what a killed process was about to write; the caller holds the folder."""
        self.check_links()
        with writing(self.path):
            for folder in (self.path, self.path / "bank", self.path / CHECKPOINTS):
                for stale in folder.glob(".*.*"):
                    if is_temporary(stale.name):
                        stale.unlink()

    def require(self) -> None:
        """Refuse to go on in a folder that was removed meanwhile: it would hold half a run.

        Raises:
            UserError: it was, or another process has made it again.
        """
        require(self.path)

    def save_result(self, result: dict[str, Any]) -> None:
        """Write `accuracy_matrix.csv`, the manifest, and `result.json`, which completes the run."""
        self.require()  # to write makes the folder again
        if not (self.path / CONFIG).is_file():
            raise UserError(f"{self.path / CONFIG} has vanished during the run: repeat the command")
        matrix = result["accuracy_matrix"]
        header = ["after_task", *(f"task_{j}" for j in range(1, len(matrix[0]) + 1))]
        rows = [[t, *row] for t, row in enumerate(matrix)]
        write_atomic(self.path / "accuracy_matrix.csv", csv_text(header, rows))
        data = render_json({"schema": SCHEMA, "digest": self.digest, **result})
        write_manifest(self.path, {RESULT: data})
        write_atomic(self.path / RESULT, data)


def changed_settings(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Name the settings that differ, "name: old -> new"; plug-ins have no order."""
    found = []
    for key in {**before, **after}:
        old, new = before.get(key), after.get(key)
        same = sorted(old or ()) == sorted(new or ()) if key == "plugin" else old == new
        if not same:
            found.append(f"{key}: {old} -> {new}")
    return found
