"""Your own images in folders: train/CLASS/* and test/CLASS/*, given with --data-dir."""

import torch
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from cl_clipfit import DataRequest, ImageSet, Options, Source, UserError

SIZE = 224  # images are kept in memory at this size; the model resizes them again if it must


def load(options: Options, request: DataRequest) -> Source:
    """Read all images; class names are the folder names."""
    folder = request.data_dir
    if folder is None:
        raise UserError("image-folder needs --data-dir FOLDER, with train/CLASS and test/CLASS")
    train, test = ImageFolder(folder / "train"), ImageFolder(folder / "test")
    if train.classes != test.classes:
        raise UserError(f"{folder}: train and test hold different classes")
    names = tuple(name.replace("_", " ") for name in train.classes)
    return Source(names, ("a photo of a {}.",), train=read(train), test=read(test))


def read(folder: ImageFolder) -> ImageSet:
    """Decode a folder's images to uint8 (N, 3, SIZE, SIZE)."""
    images = [center_crop(resize(pil_to_tensor(image), [SIZE]), [SIZE]) for image, _ in folder]
    return ImageSet(torch.stack(images), torch.tensor(folder.targets))
