"""Images that are read when needed, in memory or not; features that are computed once."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from sklearn.datasets import load_sample_images

from cl_clipfit.clip import CLIPClassifier, ModelIdentity
from cl_clipfit.clip.preprocess import Preprocess
from cl_clipfit.config.options import Recipe
from cl_clipfit.data.images import lazy as images_module
from cl_clipfit.data.images.lazy import ImageFiles, LazyImages, concatenate, hashed_by
from cl_clipfit.data.images.loading import ImageLoader, memory_budget, sized
from cl_clipfit.data.source import DataRequest, ImageSet, Source
from cl_clipfit.data.streams import build_scenario
from cl_clipfit.errors import UserError
from cl_clipfit.evaluation.feature_cache import FeatureCache, images_key
from cl_clipfit.evaluation.frozen_features import FrozenImages
from cl_clipfit.runtime.progress import Progress
from cl_clipfit.strategies.linear_head import LinearHead
from tests.support.tiny import build_tiny

FIT = Preprocess((16, 16), (0.5,) * 3, (0.5,) * 3)
CLASSES = 3


def write_photos(folder: Path, count: int = 12) -> ImageFiles:
    """Write crops of natural photographs of many sizes and shapes."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    whole = load_sample_images().images
    paths = []
    for number in range(count):
        height, width = rng.integers(10, 90, 2)
        top, left = rng.integers(0, 300, 2)
        crop = whole[number % 2][top : top + height, left : left + width]
        paths.append(folder / f"{number:02}.{'png' if number % 2 else 'jpg'}")
        Image.fromarray(crop).save(paths[-1])
    return ImageFiles(tuple(paths))


def photo_source(folder: Path) -> Source:
    files = write_photos(folder)
    labels = torch.arange(len(files)) % CLASSES
    data = ImageSet(files, labels)
    return Source(("a", "b", "c"), ("a photo of a {}.",), data, data)


def test_files_come_out_as_open_clip_prepares_them(tmp_path: Path) -> None:
    files = write_photos(tmp_path)
    transform = image_transform_v2(PreprocessCfg(size=16, mean=FIT.mean, std=FIT.std), False)
    expected = torch.stack([transform(Image.open(path)) for path in files.paths])
    assert torch.allclose(FIT(LazyImages([files], FIT).to("cpu")), expected, atol=1e-6)


def test_lazy_images_are_indexed_as_the_tensor_would_be(tmp_path: Path) -> None:
    lazy = LazyImages([write_photos(tmp_path), torch.full((4, 3, 20, 30), 7).byte()], FIT)
    whole = lazy.to("cpu")
    assert lazy.shape == whole.shape == (16, 3, 16, 16)
    mask = torch.arange(16) % 3 == 0
    order = torch.tensor([15, 2, 2, 7])
    for index in (mask, order, slice(3, 14, 4)):
        assert torch.equal(lazy[index].to("cpu"), whole[index])
        assert torch.equal(lazy[index][1:].to("cpu"), whole[index][1:])
    assert torch.equal(torch.cat([part.to("cpu") for part in lazy.split(5)]), whole)
    assert torch.equal(lazy[-1], whole[-1])
    assert lazy[order].name(1) == lazy.name(2)
    assert lazy.name(15) is None


def test_joined_images_are_those_of_the_parts(tmp_path: Path) -> None:
    files, small = write_photos(tmp_path), torch.arange(48).byte().view(1, 3, 4, 4)
    one = LazyImages([files], FIT, torch.tensor([5, 1]))
    joined = concatenate([small, one, files])
    with pytest.raises(ValueError, match="need a target size"):
        _ = joined.shape
    data = ImageSet(joined, torch.zeros(15, dtype=torch.long))
    shown = sized(Source(("a",), ("{}",), data, data), FIT).test.images.to("cpu")
    expected = [FIT.fit(small), one.to("cpu"), LazyImages([files], FIT).to("cpu")]
    assert torch.equal(shown, torch.cat(expected))
    assert torch.equal(concatenate([small, small]), torch.cat([small, small]))


def stream(source: Source, loader: ImageLoader, **options: int) -> list[torch.Tensor]:
    """Return all training images of a stream of two tasks, and its test images."""
    scenario = build_scenario("s", sized(source, FIT), tasks=2, load=loader, **options)
    train = [x for e in scenario.benchmark.train_stream for x, *_ in e.dataset]
    return [torch.stack(train), scenario.test.images.to("cpu")]


def test_numbers_do_not_depend_on_what_fits_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = photo_source(tmp_path)
    found = []
    for gib in ("1", "0"):
        monkeypatch.setenv("CL_CLIPFIT_IMAGE_GIB", gib)
        notes: list[str] = []
        loader = ImageLoader(DataRequest(note=notes.append))
        found.append(stream(source, loader, shots=2))
        assert any("decoded again" in note for note in notes) == (gib == "0")
    for in_memory, lazily in zip(*found, strict=True):
        assert torch.equal(in_memory, lazily)
    gib = 9 * 3 * 16 * 16 / 2**30  # room for the 6 training images, not for the 12 test images too
    monkeypatch.setenv("CL_CLIPFIT_IMAGE_GIB", str(gib))
    notes = []
    stream(source, ImageLoader(DataRequest(note=notes.append)), shots=2)
    assert [note[:9] for note in notes] == ["12 images"]
    monkeypatch.setenv("CL_CLIPFIT_IMAGE_GIB", "much")
    with pytest.raises(UserError, match="CL_CLIPFIT_IMAGE_GIB=much: expected a number"):
        memory_budget()


@pytest.mark.parametrize("gib", ["1", "0"])
def test_bad_images_are_listed_at_once_or_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gib: str
) -> None:
    monkeypatch.setenv("CL_CLIPFIT_IMAGE_GIB", gib)
    source = photo_source(tmp_path)
    for number in (4, 9):
        source.train.images.paths[number].write_bytes(b"no image")
    with pytest.raises(UserError, match=r"2 of 12 images cannot be read.*04\.jpg.*09\.png.*--skip"):
        stream(source, ImageLoader(DataRequest()))
    loader = ImageLoader(DataRequest(), skip_bad=True)
    train, test = stream(source, loader)
    assert len(train) == len(test) == 10
    assert len(loader.left_out) == 4  # the same files train and test here, and are read once
    assert loader.left_out[0].endswith("04.jpg: not an image of a supported format")
    for number in range(0, 12, 3):
        source.train.images.paths[number].write_bytes(b"")
    with pytest.raises(UserError, match="no readable training images for: a"):
        stream(source, ImageLoader(DataRequest(), skip_bad=True))


def test_a_set_is_read_once_for_all_seeds(tmp_path: Path) -> None:
    whole: list[int] = []

    def count(label: str, done: int, total: int) -> None:
        whole.extend([total] * (done == total))

    loader = ImageLoader(DataRequest(count=count))
    source = sized(photo_source(tmp_path), FIT)
    sets = [
        build_scenario("s", source, tasks=2, shots=2, seed=seed, load=loader) for seed in (1, 2, 1)
    ]
    assert sets[0].test.images is sets[1].test.images
    assert sets[0].train.images is sets[2].train.images
    assert whole == [6, 12, 6]  # two draws of training images, one test set


def test_images_read_once_keep_the_labels_they_are_asked_with(tmp_path: Path) -> None:
    """Two orders of classes whose labels add up to the same."""
    data = sized(photo_source(tmp_path), FIT).train
    data.images.parts[0].paths[0].write_bytes(b"")
    loader = ImageLoader(DataRequest(), skip_bad=True)
    turned = ImageSet(data.images, CLASSES - 1 - data.labels)
    assert turned.labels.sum() == data.labels.sum()
    for wanted in (data, turned):
        loaded = loader(wanted)
        assert loaded.labels.tolist() == wanted.labels.tolist()[1:]
        assert torch.equal(loaded.images, data.images[1:].to("cpu"))


def test_changed_files_change_the_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = photo_source(tmp_path)
    before = source.sha256
    assert photo_source(tmp_path).sha256 == before
    file = source.train.images.paths[3]
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(bytes(data))

    def listed_anew() -> Source:
        files = ImageSet(ImageFiles(source.train.images.paths), source.train.labels)
        return Source(source.class_names, source.templates, files, files)

    changed = listed_anew()
    assert changed.sha256 != before
    assert hashed_by(source.train.images) == "contents"
    monkeypatch.setattr(images_module, "HASHED_BYTES", 10)
    many = listed_anew()
    assert hashed_by(many.train.images) == "names and sizes"
    assert many.sha256 != changed.sha256
    missing = ImageFiles((*source.train.images.paths[:11], tmp_path / "gone.png"))
    assert missing.sizes[-1] == 0
    assert missing.digest not in (source.train.images.digest, many.train.images.digest)


def build_named() -> CLIPClassifier:
    model = build_tiny()
    model.identity = ModelIdentity("tiny", "random", "0")
    return model


class Counting(Progress):
    """Keeps notes, and counts what was encoded."""

    encoded = 0

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def count(self, label: str, done: int, total: int) -> None:
        self.encoded += done == total


def encoder(model: CLIPClassifier, cache: Path) -> tuple[FrozenImages, Counting]:
    display = Counting()
    return FrozenImages(model, torch.device("cpu"), display, FeatureCache(cache)), display


def test_features_are_kept_and_never_stale(tmp_path: Path, source: Source) -> None:
    model, images = build_named(), source.test.images
    first, shown = encoder(model, tmp_path)
    expected = torch.cat([model.image_features(batch) for batch in images.split(256)])
    assert torch.equal(first.features(images), expected)
    assert shown.encoded == 1
    again, shown = encoder(model, tmp_path)
    assert torch.equal(again.features(images), expected)
    assert shown.encoded == 0
    brighter = images.clone()
    brighter[0, 0, 0, 0] += 1
    other = ModelIdentity("tiny", "random", "1")
    for changed, identity, preprocess in (
        (brighter, model.identity, model.preprocess),
        (images, other, model.preprocess),
        (images, model.identity, Preprocess((16, 16), (0.1,) * 3, (1.0,) * 3)),
    ):
        copy = build_tiny()
        copy.identity, copy.preprocess = identity, preprocess
        anew, shown = encoder(copy, tmp_path)
        features = anew.features(changed)
        assert shown.encoded == 1
        assert torch.equal(features, copy.image_features(changed))


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path, source: Source) -> None:
    (tmp_path / "file").write_text("")
    frozen, shown = encoder(build_named(), tmp_path / "file" / "cache")
    assert frozen.features(source.test.images).shape == (48, 16)
    assert frozen.features(source.test.images[:9]).shape == (9, 16)
    assert shown.encoded == 2
    (note,) = shown.notes
    assert "features are not kept: cannot write" in note


@pytest.mark.parametrize("at", [0, 5, 200, -1])
def test_damaged_features_are_computed_again(tmp_path: Path, at: int) -> None:
    cache, features = FeatureCache(tmp_path), torch.randn(5, 4)
    cache.put({"a": 1}, features)
    assert torch.equal(cache.get({"a": 1}, 5), features)
    assert cache.get({"a": 1}, 6) is None
    assert cache.get({"a": 2}, 5) is None
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    data[at] ^= 0xFF
    file.write_bytes(bytes(data))
    assert cache.get({"a": 1}, 5) is None
    file.write_bytes(data[:40])
    assert cache.get({"a": 1}, 5) is None


def test_a_touched_or_other_file_is_another_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where files are too many to read: a copied time stamp hides no change either."""
    monkeypatch.setattr(images_module, "HASHED_BYTES", 10)
    files = write_photos(tmp_path)
    lazy = LazyImages([files], FIT)
    keys = {images_key(lazy), images_key(lazy[:5]), images_key(lazy[torch.arange(11, -1, -1)])}
    assert len(keys) == 3
    assert images_key(LazyImages([files], FIT)) in keys
    about = files.paths[2].stat()
    files.paths[2].write_bytes(files.paths[2].read_bytes())
    os.utime(files.paths[2], ns=(about.st_atime_ns, about.st_mtime_ns))
    assert images_key(lazy) not in keys
    files.paths[2].unlink()
    with pytest.raises(UserError, match=r"cannot read .*02\.jpg"):
        images_key(lazy)


def test_a_frozen_tower_learns_the_same_from_features(tmp_path: Path, source: Source) -> None:
    """Linear heads trained on images and on their features, which only rounding tells apart."""
    scores = []
    for frozen in (False, True):
        torch.manual_seed(0)
        scenario = build_scenario("s", source, tasks=3)
        model = build_named()
        recipe = Recipe(epochs=2, batch_size=8)
        if frozen:
            scenario, _ = encoder(model, tmp_path)[0].encode(scenario, {}, train=True)
            assert scenario.train.images.shape == (48, 16)
        strategy = LinearHead(model=model, class_names=scenario.class_names, recipe=recipe)
        for experience in scenario.benchmark.train_stream:
            strategy.train(experience, eval_streams=[])
        scores.append(strategy.score_all(scenario.test.images))
    assert torch.allclose(*scores, atol=1e-3)
    kept, _ = encoder(build_named(), tmp_path)[0].encode(
        build_scenario("s", source, tasks=3), {}, train=False
    )
    assert kept.train.images.dtype == torch.uint8  # to be augmented: crops differ at every use
    assert kept.test.images.dim() == 2
