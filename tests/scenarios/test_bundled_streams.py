"""Streams whose images come with the package."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from cl_clipfit.data.source import DataRequest
from cl_clipfit.experiment.scenario_file import load_source
from cl_clipfit.registry import Registry


def test_digits_and_their_split_are_those_of_scikit_learn() -> None:
    entry = Registry().get("scenarios", "split-digits")
    source = load_source(entry, entry.options_class()(), DataRequest())
    digits = load_digits()
    parts = train_test_split(
        np.arange(len(digits.target)), test_size=0.5, stratify=digits.target, random_state=0
    )
    for data, index in zip((source.train, source.test), parts, strict=True):
        pixels = np.round(digits.images[np.sort(index)] * (255 / 16)).astype(np.uint8)
        assert (data.images == torch.from_numpy(pixels)[:, None]).all()
        assert data.labels.tolist() == digits.target[np.sort(index)].tolist()


@pytest.mark.parametrize("name", ["glyph-letters", "pretraining-shapes"])
def test_a_probe_leaves_out_its_training_images(name: str) -> None:
    entry = Registry().get("scenarios", name)
    whole = load_source(entry, entry.options_class()(), DataRequest())
    probe = load_source(entry, entry.options_class()(), replace(DataRequest(), test_only=True))
    assert (len(probe.train), probe.train.images.shape[1:]) == (0, whole.train.images.shape[1:])
    assert torch.equal(probe.test.images, whole.test.images)
