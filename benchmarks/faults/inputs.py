"""Malformed input of every kind: each is read, or refused in one line, at once."""

import json
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from benchmarks.faults import seeds
from benchmarks.faults.job import Bench, Campaign, Place, start, wait
from cl_clipfit.bank.store import DeltaBank
from cl_clipfit.clip.loading.untrusted_weights import check_checkpoint
from cl_clipfit.config.command import RunConfig, read_config
from cl_clipfit.config.options import explain
from cl_clipfit.config.text_files import read_class_names
from cl_clipfit.data.fetch.unpacking import new_folder, unpack_into
from cl_clipfit.data.formats.feature_files import read_features
from cl_clipfit.data.images.decode import open_image
from cl_clipfit.data.orders import class_order, read_tasks
from cl_clipfit.errors import UserError

LIMIT_SECONDS = 10.0  # of one file
LIMIT_BYTES = 1 << 20  # of what an archive unpacks to
BATCH = 250  # files that one process reads
Read = Callable[[Path], Any]
Seed = Callable[[random.Random], bytes]


class _HangError(BaseException):
    """A file took longer than `LIMIT_SECONDS`; no loader's `except Exception` catches it."""


def _read_config(file: Path) -> None:
    RunConfig.model_validate(read_config(file))


def _unpack(file: Path) -> None:
    with new_folder(file.parent / "out" / "new") as stage:
        unpack_into(file, stage, LIMIT_BYTES)


# File name, what makes a good one, what reads it.
KINDS: tuple[tuple[str, Seed, Read], ...] = (
    ("config.yaml", seeds.config, _read_config),
    ("names.txt", seeds.names_text, lambda file: read_class_names(file, seeds.NAMES)),
    ("names.yaml", seeds.names_yaml, lambda file: read_class_names(file, seeds.NAMES)),
    ("names.json", seeds.names_json, lambda file: read_class_names(file, seeds.NAMES)),
    ("order.txt", seeds.names_text, lambda file: class_order(str(file), 5, seeds.NAMES)),
    ("tasks.yaml", seeds.tasks_yaml, lambda file: read_tasks(file, seeds.NAMES)),
    ("features.npz", seeds.npz, read_features),
    ("features.safetensors", seeds.safetensors, read_features),
    ("weights.safetensors", seeds.safetensors, check_checkpoint),
    ("weights.pt", seeds.weights, check_checkpoint),
    ("index.json", seeds.bank_index, lambda file: DeltaBank.open(file.parent)),
    ("image.bin", seeds.image, open_image),
    ("archive.bin", seeds.archive, _unpack),
)


def feed_bad_input(bench: Bench, campaign: Campaign, trials: int, draws: random.Random) -> None:
    """Feed damaged, hostile and made-up files to what reads them, in turn, and banks."""
    for first in range(0, trials, BATCH):
        count, seed = min(BATCH, trials - first), draws.random()
        with bench.place(f"input-{first}", campaign) as place:
            _feed(bench, place, campaign, (first, count, seed))


def _feed(bench: Bench, place: Place, campaign: Campaign, part: tuple[int, int, float]) -> None:
    """Read files in a process of its own: what breaks the interpreter is a loss, no end."""
    first, count, seed = part
    told = place.log("told")
    told.touch()
    child = start(lambda: _read_all(place.folder, told, part), place.log())
    code = wait(child)
    lines = [json.loads(line) for line in told.read_text().splitlines()]
    for kind, way, text in lines:
        campaign.count(way)
        lost = way in ("tracebacks", "hangs", "files_outside")
        campaign.end_trial(f"{place.folder.name}: {kind}: {text}" if lost else "")
    if code or len(lines) != count:
        campaign.count("crashes")
        campaign.end_trial(f"{place.folder.name}: exit code {code} after {len(lines)} files, seed"
                           f" {seed}, first {first}: {place.said()[-300:]}")  # fmt: skip


def _read_all(folder: Path, told: Path, part: tuple[int, int, float]) -> int:
    first, count, seed = part
    draws, room = random.Random(seed), folder / "room"
    here, inside = room / "here", room / "in"
    for made in (here, inside):
        made.mkdir(parents=True)
    os.chdir(here)
    with told.open("w") as out:
        for number in range(first, first + count):
            name, seed_file, read = KINDS[number % len(KINDS)]
            is_text = name.endswith((".txt", ".yaml", ".json"))
            data = seeds.damaged(seed_file(draws), is_text, draws)
            file = seeds.write(inside / name, data)
            before = _outside(folder, inside)
            way, text = _try(read, file)
            if appeared := _outside(folder, inside) - before:
                way, text = "files_outside", f"{sorted(appeared)}"
            if way in ("tracebacks", "hangs", "files_outside"):
                seeds.write(folder / f"{number}-{name}", data)
            out.write(json.dumps([name, way, text]) + "\n")
            out.flush()
            _clear(inside)
    return 0


def _try(read: Read, file: Path) -> tuple[str, str]:
    """Read a file; return what became of it, and why."""

    def alarm(*_: Any) -> None:
        raise _HangError

    signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS)
    started = time.monotonic()
    try:
        read(file)
        way, text = "read", ""
    except ValidationError as error:
        way, text = "refused", explain(error)  # as the command does
    except UserError as error:
        way, text = "refused", " ".join(str(error).split())
    except _HangError:
        way, text = "hangs", "".join(traceback.format_exc().splitlines()[-3:])
    except Exception:
        way, text = "tracebacks", " | ".join(traceback.format_exc().splitlines()[-3:])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if way == "refused" and not text.strip():
        way, text = "tracebacks", "it is refused without a word"
    if time.monotonic() - started > LIMIT_SECONDS:  # in a library that no alarm stops
        way, text = "hangs", f"{time.monotonic() - started:.0f} s"
    return way, text


def _outside(folder: Path, inside: Path) -> set[str]:
    """Return all files but those in the folder that is written to, and above it."""
    near = {str(path) for path in folder.rglob("*") if not path.is_relative_to(inside / "out")}
    above = [*folder.parent.iterdir(), seeds.NOWHERE]
    return near | {str(path) for path in above if path.exists()}


def _clear(inside: Path) -> None:
    for path in sorted(inside.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
