"""CIFAR-100, 10 tasks of 10 classes: the standard stream of the field.

50,000 training and 10,000 test images of 32x32 pixels (Krizhevsky 2009).
"""

from pathlib import Path

from cl_clipfit import DataRequest, Options, Source, UserError
from cl_clipfit.data.fetch.archives import how_to_run_offline
from cl_clipfit.data.fetch.download import cache_folder, download
from cl_clipfit.data.formats.cifar import CIFAR100, CifarData, read_archive, read_unpacked
from cl_clipfit.data.formats.folders import read_known_classes

NAME = "split-cifar100"
CLASSES = 100
TASKS = 10
IMAGES = "50,000 + 10,000"
DOWNLOAD = "169 MB"
LICENCE = "none stated"
MODEL = "ViT-B-16-quickgelu:openai"
CLASS_ORDER = "der-cifar100"
RECIPE = {"epochs": 3, "batch_size": 64, "lr": 5e-4, "augmentation": "crop-flip", "crop_scale": 0.5}


def load(options: Options, request: DataRequest) -> Source:
    """Read the archive, its unpacked folder or an image folder; download it if none is named."""
    path = request.data_dir
    if path is None:
        path = _download(request)
    if (path / CIFAR100.archive).is_file():
        path = path / CIFAR100.archive
    unpacked = path / CIFAR100.folder if (path / CIFAR100.folder).is_dir() else path
    if path.is_file():
        return _source(read_archive(path, CIFAR100, request.unverified), "archive", request)
    if all((unpacked / name).is_file() for name in ("train", "test", "meta")):
        return _source(read_unpacked(unpacked, CIFAR100, request.unverified), "folder", request)
    if (path / "train").is_dir() and (path / "test").is_dir():
        train, test = (
            read_known_classes(path / part, CIFAR100.names) for part in ("train", "test")
        )
        return _source(CifarData(CIFAR100.names, train, test, verified=False), "images", request)
    raise UserError(
        f"--data-dir {path} does not hold CIFAR-100: expected {CIFAR100.archive}, the folder"
        f" {CIFAR100.folder} with train, test and meta, or images in train/CLASS/* and"
        " test/CLASS/*; without --data-dir it is downloaded"
    )


def _download(request: DataRequest) -> Path:
    try:
        target = cache_folder() / CIFAR100.archive
        return download(CIFAR100.url, target, CIFAR100.sha256, request)
    except UserError as error:
        raise UserError(f"{error}, or anywhere else. {how_to_run_offline(NAME, MODEL)}") from error


def _source(data: CifarData, kind: str, request: DataRequest) -> Source:
    if not data.verified:
        request.note(f"{NAME}: these are not the official files; results say so")
    return Source(
        class_names=data.names,
        templates=("a photo of a {}.",),
        train=data.train,
        test=data.test,
        origin={"kind": kind, "verified": data.verified},
    )
