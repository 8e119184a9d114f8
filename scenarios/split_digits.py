"""Handwritten digits of scikit-learn, 5 tasks of 2 classes; real images, no download.

1,797 images of 8x8 pixels (Alpaydin and Kaynak 1998, UCI "Optical Recognition of Handwritten
Digits", test part), half of each class for training, half for testing, by a fixed draw.
"""

import base64
import importlib.util
from pathlib import Path

import numpy as np
import torch

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


# One bit for each image, 1 for testing: scikit-learn's train_test_split(range(1797), test_size=0.5,
# random_state=0, stratify=labels). Its import would take half as long as PyTorch's.
TESTED = (
    ">NrHowdQ!ynO1Kh*K$oB`X~+)DzrfFCoEnFF&USi0nj-zrZxVfn!}#-N+?g?yhax;$zspq$}#Y|U>?||dF!DtNmz}="
    "hmt}c@Q@KzO6)=L9wBz_%n611H<paUzlT1jrrv%-BoZ&%)aV7Kx&0Fo@^R%r@hos|oHy^M(jQG;$UsP9sid5$bV>GKm1FLU"
    ")2rW-?TW>sB_^L@BhB&x!SVf$+sH}zl}(n;AqtGxsP%F;t~nveP0Yw{%V9RtDzcLa_O5U(rpKko?{tCK=%ln#hqhWW)jYf%U;"
)


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's digits, pixels (N, 8, 8) of 0..16 and labels (N,), from its file."""
    spec = importlib.util.find_spec("sklearn")  # finds the package without importing it
    assert spec is not None and spec.origin is not None
    file = Path(spec.origin).parent / "datasets/data/digits.csv.gz"
    values = np.loadtxt(file, delimiter=",")
    return values[:, :-1].reshape(-1, 8, 8), values[:, -1].astype(np.int64)


def load(options: Options, request: DataRequest) -> Source:
    """Return the digits as three equal grey channels; the model's preprocessing enlarges them."""
    digits, targets = read_digits()
    pixels = np.round(digits * (255 / 16)).astype(np.uint8)
    images = torch.from_numpy(pixels).unsqueeze(1).repeat(1, 3, 1, 1)
    data = ImageSet(images, torch.from_numpy(targets))
    bits = np.unpackbits(np.frombuffer(base64.b85decode(TESTED), np.uint8), count=len(targets))
    tested = torch.from_numpy(bits.astype(bool))
    return Source(
        class_names=NAMES,
        templates=("a photo of the digit {}.",),
        train=data.subset(~tested),
        test=data.subset(tested),
    )
