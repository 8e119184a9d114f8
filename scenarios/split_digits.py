"""Handwritten digits of scikit-learn, 5 tasks of 2 classes; real images, no download.

1,797 images of 8x8 pixels (Alpaydin and Kaynak 1998, UCI "Optical Recognition of Handwritten
Digits", test part), half of each class for training, half for testing, by a fixed draw.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from cl_clipfit import DataRequest, ImageSet, Options, Source

NAME = "split-digits"
CLASSES = 10
TASKS = 5
IMAGES = "898 + 899"
DOWNLOAD = "none"
LICENCE = "CC BY 4.0"
MODEL = "mini"
CLASS_ORDER = "natural"
RECIPE = {"epochs": 8, "batch_size": 32, "lr": 3e-3}

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def load(options: Options, request: DataRequest) -> Source:
    """Return the digits as three equal grey channels; the model's preprocessing enlarges them."""
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = torch.from_numpy(pixels).unsqueeze(1).repeat(1, 3, 1, 1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.5, stratify=digits.target, random_state=0
    )
    data = ImageSet(images, labels)
    return Source(
        class_names=NAMES,
        templates=("a photo of the digit {}.",),
        train=data.subset(torch.from_numpy(np.sort(train))),
        test=data.subset(torch.from_numpy(np.sort(test))),
    )
