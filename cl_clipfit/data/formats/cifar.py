"""CIFAR in its official Python format: the archive, or the folder it unpacks to.

Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images". The batches are pickles;
they are read by an unpickler that accepts only byte arrays and plain containers and runs no code.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from cl_clipfit.data.fetch.download import file_hash
from cl_clipfit.data.fetch.unpacking import archive_members
from cl_clipfit.data.formats.plain_pickle import PickledBytes, PlainUnpickler
from cl_clipfit.data.source import ImageSet
from cl_clipfit.errors import UserError

SIDE = 32
LARGEST_MEMBER = 1 << 30  # bytes; the official training batch of CIFAR-100 has 155 million


@dataclass(frozen=True)
class CifarFormat:
    """Where a CIFAR data set is, and what its files are called.

    Attributes:
        title: name in messages.
        url: the official archive.
        sha256: SHA-256 of the archive; "" if none is published.
        folder: what the archive unpacks to.
        train: training batches and their MD5 sums, the only checksums published for them.
        test: test batches, like `train`.
        meta: the file of class names, like `train`.
        labels_key: entry of a batch that holds the labels.
        names_key: entry of `meta` that holds the class names.
        names: class names in label order, words separated by spaces.
        md5: MD5 of the archive, if no SHA-256 is published.
    """

    title: str
    url: str
    sha256: str
    folder: str
    train: dict[str, str]
    test: dict[str, str]
    meta: dict[str, str]
    labels_key: str
    names_key: str
    names: tuple[str, ...]
    md5: str = ""

    @property
    def checksum(self) -> str:
        """Return the archive's "sha256:HEX" or "md5:HEX"."""
        return f"sha256:{self.sha256}" if self.sha256 else f"md5:{self.md5}"

    @property
    def archive(self) -> str:
        """Return the file name of the archive."""
        return self.url.rpartition("/")[2]


_NAMES_100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
    crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
    keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse
    mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy
    porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper
    snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television
    tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100 = CifarFormat(
    title="CIFAR-100",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    folder="cifar-100-python",
    train={"train": "16019d7e3df5f24257cddd939b257f8d"},
    test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
    labels_key="fine_labels",
    names_key="fine_label_names",
    names=tuple(name.replace("_", " ") for name in _NAMES_100.split()),
)
_NAMES_10 = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR10 = CifarFormat(
    title="CIFAR-10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    sha256="",
    md5="c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
    train={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    test={"test_batch": "40351d587109b95175f43aff81a1287e"},
    meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
    labels_key="labels",
    names_key="label_names",
    names=tuple(_NAMES_10.split()),
)


@dataclass(frozen=True)
class CifarData:
    """The content of a CIFAR data set.

    Attributes:
        names: class names in label order, words separated by spaces.
        train: training images, uint8 (N, 3, 32, 32).
        test: test images.
        verified: True if the files are the official ones.
    """

    names: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    verified: bool


def _unpickle(file: IO[bytes], where: str) -> dict[str, Any]:
    """Read a mapping; keys become text."""
    try:
        content = PlainUnpickler(file, encoding="latin1").load()
        return {_text(key): value for key, value in content.items()}
    except Exception as error:  # a damaged pickle may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{where} is not a CIFAR batch: {reason[:200]}") from error


def _text(value: Any) -> str:
    """Return text that may have been written as bytes."""
    value = value.decode("utf-8") if isinstance(value, bytes) else value
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a name that is not text")
    return value


def _batch(content: dict[str, Any], form: CifarFormat, where: str) -> ImageSet:
    missing = [key for key in ("data", form.labels_key) if key not in content]
    if missing:
        raise UserError(f"{where} is not a CIFAR batch: '{missing[0]}' is missing")
    data, labels = content["data"], content[form.labels_key]
    values, classes = 3 * SIDE * SIDE, range(len(form.names))
    pixels = data.pixels if isinstance(data, PickledBytes) else None
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != values:
        raise UserError(f"{where}: 'data' must be uint8 (N, {values})")
    valid = isinstance(labels, list) and all(type(n) is int and n in classes for n in labels)
    if not valid or len(labels) != len(pixels):
        raise UserError(
            f"{where}: '{form.labels_key}' must be {len(pixels)} integers from 0 to"
            f" {len(form.names) - 1}"
        )
    images = torch.from_numpy(pixels.reshape(-1, 3, SIDE, SIDE).copy())
    return ImageSet(images, torch.tensor(labels, dtype=torch.int64))


def _assemble(files: dict[str, dict[str, Any]], form: CifarFormat, verified: bool) -> CifarData:
    def join(batches: dict[str, str]) -> ImageSet:
        parts = [_batch(files.pop(name), form, name) for name in batches]
        if len(parts) == 1:
            return parts[0]  # without a copy
        images, labels = torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts])
        return ImageSet(images, labels)

    (meta,) = form.meta
    names = files[meta].get(form.names_key)
    if not isinstance(names, list) or len(names) != len(form.names):
        raise UserError(f"{meta}: '{form.names_key}' must be {len(form.names)} class names")
    try:
        texts = [_text(name) for name in names]
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{meta}: '{form.names_key}' holds {error}") from error
    return CifarData(
        tuple(text.replace("_", " ") for text in texts), join(form.train), join(form.test), verified
    )


def read_archive(file: Path, form: CifarFormat, unverified: bool = False) -> CifarData:
    """Read the archive without unpacking it.

    Raises:
        UserError: it is not the official archive and `unverified` is False, or cannot be read.
    """
    kind, _, official = form.checksum.partition(":")
    digest = file_hash(file, kind)
    verified = digest == official
    if not (verified or unverified):
        raise UserError(
            f"{file} is not the official {form.title} archive ({kind} {digest}, expected"
            f" {official}): download it again from {form.url}, or accept it as it is with"
            " --unverified-data"
        )
    members = {f"{form.folder}/{name}": name for name in (*form.train, *form.test, *form.meta)}
    files: dict[str, dict[str, Any]] = {}
    try:
        for path, size, content, _ in archive_members(file):
            name = members.get(path.removeprefix("./"))
            if name is None or content is None:
                continue
            if size > LARGEST_MEMBER:
                raise UserError(f"{file}: {path} is too large ({size:,} bytes)")
            files[name] = _unpickle(content, f"{file}: {path}")
    except UserError:
        raise
    except Exception as error:  # a damaged archive may raise anything
        raise UserError(f"{file} is damaged or incomplete: {error}") from error
    missing = [path for path, name in members.items() if name not in files]
    if missing:
        raise UserError(f"{file} does not contain {missing[0]}")
    return _assemble(files, form, verified)


def read_unpacked(folder: Path, form: CifarFormat, unverified: bool = False) -> CifarData:
    """Read the folder that the archive unpacks to, in torchvision's layout.

    Raises:
        UserError: a file is not the official one and `unverified` is False, or cannot be read.
    """
    files, verified = {}, True
    for name, md5 in {**form.train, **form.test, **form.meta}.items():
        file = folder / name
        if file.stat().st_size > LARGEST_MEMBER:
            raise UserError(f"{file} is too large")
        verified = verified and file_hash(file, "md5") == md5
        if not (verified or unverified):
            raise UserError(
                f"{file} is not the official file: unpack {form.archive} again, or accept it as it"
                " is with --unverified-data"
            )
        with file.open("rb") as opened:
            files[name] = _unpickle(opened, str(file))
    return _assemble(files, form, verified)
