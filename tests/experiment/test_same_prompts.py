"""Classes that no text can tell apart are named in a warning that the result keeps."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cl_clipfit import RunConfig, run
from cl_clipfit.clip.prompts import same_prompts
from cl_clipfit.experiment.prepare import prepare
from cl_clipfit.runtime.progress import Progress
from tests.support.feature_files import arrays
from tests.support.tiny import tokenizer

SAME = "classes with the same prompts are never told apart by them: "


class Listener(Progress):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def draw(root: Path, *classes: str) -> Path:
    for place in classes:
        (root / place).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(root / place / f"{number}.png")
    return root


def warnings(data: Path, scenario: str = "folder", **settings: object) -> list[str]:
    listener = Listener()
    given = {"scenario": scenario, "data_dir": data, "probe": [], "strategy": ["zero-shot"]}
    config = RunConfig.model_validate({**given, "model": "mini", **settings})
    prepared = prepare(config, listener)
    assert tuple(listener.warnings) == prepared.source.warnings
    return listener.warnings


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["Cat", "cat", "dog"], [[0, 1]]),
        (["dog", "caf\u00e9", "cafe\u0301"], [[1, 2]]),
        (["a  b", "c &amp; d", "a b", "c & d"], [[0, 2], [1, 3]]),
        (["crane", "crane", "crane"], [[0, 1, 2]]),
        (["crane", "cranes", "crane."], []),
    ],
)
def test_names_are_compared_as_the_tokenizer_reads_them(
    names: list[str], groups: list[list[int]]
) -> None:
    for templates in (["a {}."], ["{}", "the {}"], [["{}", "a {}"]] * len(names)):
        assert same_prompts(tokenizer(), names, templates) == groups
    assert same_prompts(tokenizer(), names, [[f"{n} {{}}"] for n, _ in enumerate(names)]) == []
    differing = [["{}", f"{n} {{}}"] for n, _ in enumerate(names)]
    assert same_prompts(tokenizer(), names, differing) == []


def test_folders_that_differ_in_case_or_form(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD")]
    data = draw(tmp_path, "Cat", "cat", "dog", *forms)
    (line,) = warnings(data)
    assert line.startswith(f"{SAME}'Cat' = 'cat' (labels 0, 3); ")
    assert line.count(" = ") == 2
    assert warnings(draw(tmp_path / "other", "cat", "dog")) == []


def test_domains_that_spell_a_class_in_two_ways(tmp_path: Path) -> None:
    data = draw(tmp_path, "a/Oak", "a/pine", "b/oak", "b/pine")
    assert warnings(data, "domain-incremental")[0].startswith(f"{SAME}'Oak' = 'oak'")


def test_two_classes_given_one_name_are_in_the_result(tmp_path: Path) -> None:
    data, names = draw(tmp_path / "d", "crane bird", "crane machine", "dog"), tmp_path / "n.yaml"
    names.write_text("crane bird: crane\ncrane machine: crane\n")
    (result,) = run(
        RunConfig(
            scenario="folder",
            data_dir=data,
            class_names=names,
            model="mini",
            tasks=2,
            probe=[],
            strategy=["zero-shot"],
            output=tmp_path / "runs",
        )
    )
    (line,) = result.content["warnings"]
    assert line.startswith(f"{SAME}'crane' = 'crane' (labels 0, 1): rename them")


def test_equal_text_features(tmp_path: Path) -> None:
    content = arrays()
    content["text"] = torch.from_numpy(content["text"])[[0, 1, 2, 3, 1, 5, 6]].numpy()
    with (tmp_path / "f.npz").open("wb") as file:
        np.savez(file, **content)
    (line,) = warnings(tmp_path / "f.npz", "features", model=None)
    assert "same text features are never told apart by them: 'dog' = 'hen' (labels 1, 4)" in line
