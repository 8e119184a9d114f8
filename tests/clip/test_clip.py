"""The classifier against open_clip's own forward pass, and everything that can be loaded wrong."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cl_clipfit.clip import CLIPClassifier, create_classifier
from cl_clipfit.clip.loading.factory import hash_weights
from cl_clipfit.clip.loading.names import Weights, preprocessing_of, resolve_weights
from cl_clipfit.errors import UserError

NAMES = ["cat", "red {car}", "dog", "dog"]


class WordTokenizer:
    """Stands in for tokenizers that come from a hub: any ids will do to compare two encoders."""

    def __init__(self, vocabulary: int, length: int) -> None:
        self.vocabulary, self.length = vocabulary, length

    def __call__(self, prompts: list[str]) -> Tensor:
        rows = torch.zeros(len(prompts), self.length, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids = [2 + sum(map(ord, word)) % (self.vocabulary - 3) for word in prompt.split()]
            rows[row, : len(ids) + 1] = torch.tensor([*ids, self.vocabulary - 1])
        return rows


@pytest.mark.parametrize(
    ("architecture", "kind", "custom_text"),
    [
        ("ViT-B-32", "CLIP", False),
        ("RN50", "CLIP", False),
        ("ViT-B-16-SigLIP", "CustomTextCLIP", False),
        ("ViT-M-32-alt", "CustomTextCLIP", True),
    ],
)
def test_logits_equal_open_clips_own_forward(
    architecture: str, kind: str, custom_text: bool
) -> None:
    config = open_clip.get_model_config(architecture)
    vocabulary = config["text_cfg"]["vocab_size"]
    torch.manual_seed(0)
    clip = open_clip.create_model(architecture, force_custom_text=custom_text).eval()
    assert type(clip).__name__ == kind
    image_size = clip.visual.image_size
    tokenizer = WordTokenizer(vocabulary, config["text_cfg"].get("context_length", 77))
    side = image_size if isinstance(image_size, int) else image_size[0]
    images = torch.randn(3, 3, side, side)
    prompts = [f"a photo of a {name}." for name in NAMES]
    with torch.no_grad():
        output = clip(images, tokenizer(prompts))
        image, text, scale = output[:3]
        expected = scale * image @ text.T + (output[3] if len(output) > 3 else 0)
        classifier = CLIPClassifier(clip, tokenizer)
        classifier.add_classes(NAMES)
        actual = classifier(images)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_template_ensemble_is_the_normalised_mean_of_normalised_features(
    tiny: Callable[..., CLIPClassifier],
) -> None:
    templates = ["a photo of a {}.", "a drawing of a {}.", "{}"]
    model = tiny()
    model.add_classes(NAMES[:2], templates)
    model.add_classes(NAMES[2:])
    for row, name in enumerate(NAMES):
        prompts = [t.replace("{}", name) for t in (templates if row < 2 else templates[:1])]
        each = F.normalize(model.clip.encode_text(model.tokenizer(prompts)), dim=-1)
        expected = F.normalize(each.mean(0), dim=-1)
        torch.testing.assert_close(model.text_features([row])[0], expected, atol=1e-6, rtol=1e-5)


def test_growing_changes_no_old_feature_and_anchors_stay_zero_shot(
    tiny: Callable[..., CLIPClassifier],
) -> None:
    model = tiny()
    model.add_classes(["one", "two"])
    zero_shot = model.text_features().clone()
    bias = model.clip.transformer.resblocks[0].mlp.c_proj.bias
    assert list(model.train_only([bias])) == ["clip.transformer.resblocks.0.mlp.c_proj.bias"]
    with torch.no_grad():
        bias += torch.randn(16)
    tuned = model.text_features().clone()
    assert not torch.allclose(tuned, zero_shot)
    model.add_classes(["three"])
    assert torch.equal(model.zero_shot_text_features[:2], zero_shot)
    assert torch.equal(model.text_features([0, 1]), tuned)
    untouched = tiny()
    untouched.add_classes(["one", "two", "three"])
    torch.testing.assert_close(model.zero_shot_text_features, untouched.zero_shot_text_features)
    with model.pretrained_weights():
        torch.testing.assert_close(model.text_features([0, 1]), zero_shot)
    assert torch.equal(model.text_features([0, 1]), tuned)


def test_a_subset_of_classes_is_a_subset_of_columns(tiny: Callable[..., CLIPClassifier]) -> None:
    model = tiny()
    model.add_classes(["one", "two", "three"])
    images = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8)
    full = model(images)
    torch.testing.assert_close(model(images, [2, 0]), full[:, [2, 0]])
    with model.cached_text():
        torch.testing.assert_close(model(images), full)
        torch.testing.assert_close(model(images, [1]), full[:, [1]])


Shared = tuple[CLIPClassifier, Tensor, Tensor]


@pytest.fixture
def shared(tiny: Callable[..., CLIPClassifier]) -> Shared:
    """Return a model with two classes, and two batches of images."""
    model = tiny()
    model.add_classes(["one", "two"])
    one, other = torch.randint(0, 256, (2, 2, 3, 16, 16), dtype=torch.uint8)
    return model, one, other


def test_text_stays_cached_after_an_inner_block(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, encode, calls = shared[0], shared[0].encode_prompts, []
    monkeypatch.setattr(model, "encode_prompts", lambda *a, **k: calls.append(1) or encode(*a, **k))
    bias = model.clip.transformer.resblocks[0].mlp.c_proj.bias
    with model.cached_text():
        expected = model.text_features()
        changed = {"clip.transformer.resblocks.0.mlp.c_proj.bias": bias + 1}
        with model.weights(changed), model.cached_text():
            assert not torch.equal(model.text_features(), expected)
        assert torch.equal(model.text_features(), expected)
    assert len(calls) == 2


def test_known_images_stay_known_after_an_inner_block(shared: Shared) -> None:
    model, one, other = shared
    given, inner = torch.randn(2, 2, 8)
    with model.known_images(one, given):
        with model.known_images(other, inner):
            assert model.image_features(other) is inner
        assert model.image_features(one) is given
    assert model.image_features(one) is not given


def test_patches_stay_shared_after_an_inner_block(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, one, other = shared
    convolve, calls = F.conv2d, []
    monkeypatch.setattr(
        "cl_clipfit.clip.encoders.vision.F.conv2d",
        lambda *a, **k: calls.append(1) or convolve(*a, **k),
    )
    with model.shared_embedding(one):
        with model.shared_embedding(other):
            model.image_features(other)
        model.image_features(one)
    assert len(calls) == 2
    model.image_features(one)
    assert len(calls) == 3


def test_prompts_are_encoded_along_after_an_inner_block(shared: Shared) -> None:
    model = shared[0]
    words, others = model.tokenize(["three"]), model.tokenize(["four", "five"])
    with model.encoding_along(words) as outer:
        with model.encoding_along(others) as inner:
            model.text_features()
        assert (len(outer), inner[0].shape[0]) == (0, 2)
        model.text_features()
    expected = model.encode_prompts(words, normalize=False)
    torch.testing.assert_close(outer[0], expected)


def test_weights_of_an_outer_block_are_back_after_an_inner_one(shared: Shared) -> None:
    model = shared[0]
    bias = model.clip.transformer.resblocks[0].mlp.c_proj.bias
    (name,), start = model.train_only([bias]), bias.detach().clone()
    with model.weights({name: start + 1}):
        with model.pretrained_weights():
            with model.weights({name: start + 2}):
                assert torch.equal(bias, start + 2)
            assert torch.equal(bias, start)
        assert torch.equal(bias, start + 1)
    assert torch.equal(bias, start)


def test_the_backbone_stays_in_evaluation_mode(tiny: Callable[..., CLIPClassifier]) -> None:
    model = tiny().train()
    assert model.training
    assert not any(module.training for module in model.clip.modules())
    assert not any(p.requires_grad for p in model.parameters())


def test_a_foreign_parameter_cannot_be_selected(tiny: Callable[..., CLIPClassifier]) -> None:
    with pytest.raises(ValueError, match="belong to this model"):
        tiny().train_only([torch.nn.Parameter(torch.zeros(1))])


def test_mini_loads_through_open_clip_and_is_small() -> None:
    model = create_classifier("mini")
    folder = Path(open_clip.__file__).parent
    assert model.identity is not None
    assert (model.identity.architecture, model.identity.pretrained) == ("mini", "bundled")
    weights = Path("cl_clipfit/clip/mini/weights.safetensors")
    assert weights.stat().st_size <= 10_000_000
    assert not (folder / "model_configs" / "mini.json").exists()
    plain = open_clip.create_model("mini", pretrained=str(weights))
    assert hash_weights(plain) == model.identity.weights_sha256


def test_a_checkpoint_file_is_loaded_and_told_apart_by_its_hash(tmp_path: Path) -> None:
    clip = create_classifier("mini:random").clip
    file = tmp_path / "own.pt"
    torch.save(clip.state_dict(), file)
    loaded = create_classifier(f"mini:{file}")
    assert loaded.identity is not None
    assert loaded.identity.pretrained == "own.pt"
    assert loaded.identity.weights_sha256 == hash_weights(clip)
    bundled = create_classifier("mini").identity
    assert bundled is not None
    assert loaded.identity.weights_sha256 != bundled.weights_sha256


def test_random_weights_are_the_same_every_time_and_leave_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    first, second = create_classifier("mini:random"), create_classifier("mini:random")
    assert torch.equal(before, torch.get_rng_state())
    assert first.identity == second.identity


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("ViT-B-16:openai", "ViT-B-16-quickgelu:openai"),
        ("ViT-B-32:openai", "ViT-B-32-quickgelu:openai"),
        ("RN50:openai", "RN50-quickgelu:openai"),
        ("ViT-L-14:openai", "ViT-L-14-quickgelu:openai"),
        ("ViT-B-16:dfn2b", "ViT-B-16-quickgelu:dfn2b"),
        ("ViT-B-32:metaclip_400m", "ViT-B-32-quickgelu:metaclip_400m"),
    ],
)
def test_a_quickgelu_mismatch_is_an_error_that_names_the_right_model(name: str, right: str) -> None:
    with pytest.raises(UserError, match=f"QuickGELU.*--model {right}"):
        create_classifier(name)


def test_every_mismatch_open_clip_knows_of_is_refused_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cl_clipfit.clip.loading.factory._load", lambda *_: pytest.fail("accepted"))
    refused = 0
    for architecture, tag in open_clip.list_pretrained():
        wanted = open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu")
        built = open_clip.get_model_config(architecture).get("quick_gelu", False)
        if wanted is not None and wanted != built:
            refused += 1
            with pytest.raises(UserError, match="QuickGELU mismatch"):
                create_classifier(f"{architecture}:{tag}")
        else:
            assert resolve_weights(architecture, tag) == Weights(tag)
    assert refused >= 20


def test_a_file_named_like_a_tag_does_not_turn_the_checks_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openai").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="QuickGELU mismatch"):
        create_classifier("ViT-B-16:openai")
    assert resolve_weights("ViT-B-16-quickgelu", "openai") == Weights("openai")


def test_a_file_gets_the_preprocessing_of_its_tag() -> None:
    file = "cl_clipfit/clip/mini/weights.safetensors"
    assert resolve_weights("ViT-L-14", f"laion2b_s32b_b82k:{file}").file == file
    inception = preprocessing_of("ViT-L-14", Weights("laion2b_s32b_b82k", file))
    assert inception["mean"] == (0.5, 0.5, 0.5)
    assert preprocessing_of("ViT-B-32", Weights("", file))["mean"] == open_clip.OPENAI_DATASET_MEAN
    siglip = preprocessing_of("ViT-B-16-SigLIP", Weights("", file))
    assert (siglip["resize_mode"], siglip["mean"]) == ("squash", (0.5, 0.5, 0.5))
    with pytest.raises(UserError, match=f"--model ViT-L-14:TAG:{file}"):
        preprocessing_of("ViT-L-14", Weights("", file))


def test_preprocessing_of_a_file_reaches_the_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "own.pt"
    torch.save(create_classifier("mini").clip.state_dict(), file)
    settings = {"mean": (0.5, 0.5, 0.5), "resize_mode": "squash"}
    monkeypatch.setattr("cl_clipfit.clip.loading.factory.preprocessing_of", lambda *_: settings)
    preprocess = create_classifier(f"mini:{file}").preprocess
    assert (preprocess.mean, preprocess.resize_mode) == ((0.5, 0.5, 0.5), "squash")


def test_a_missing_network_is_one_sentence_with_the_file_to_fetch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise OSError("network is unreachable")

    monkeypatch.setattr("open_clip.factory.download_pretrained", refuse)
    with pytest.raises(UserError) as caught:
        create_classifier("ViT-B-16-quickgelu:openai")
    message = str(caught.value)
    assert "timm/vit_base_patch16_clip_224.openai" in message
    assert "--model ViT-B-16-quickgelu:openai:PATH_TO/" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-33:openai", "unknown model architecture 'ViT-B-33'. Did you mean"),
        ("vit-b-16:openai", "Did you mean 'ViT-B-16'"),
        ("Mini", "Did you mean 'mini'"),
        ("cl_clipfit/clip/mini/mini.txt", "unknown model architecture"),
        ("cl_clipfit/clip/mini/weights.safetensors", "is a file: give its architecture too"),
        ("cl_clipfit/clip", "is a folder: --model local-dir:cl_clipfit/clip"),
        ("%" * 500, "All are listed by"),
        ("ViT-B-32", "needs weights"),
        ("ViT-B-32:laion2b_s34b_b79", "Did you mean 'laion2b_s34b_b79k'"),
        ("mini:nothing", "neither a file nor a tag"),
        ("ViT-B-32:laion2b_s34b_b79k:absent.pt", "absent.pt: there is no such file"),
        ("mini:" + "x" * 300, "neither a file nor a tag"),
        ("local-dir:nowhere", "nowhere"),
    ],
)
def test_wrong_model_names_are_explained(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        create_classifier(name)
    assert len(str(caught.value)) < 450


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.pt"
    text.write_text("not weights")
    with pytest.raises(UserError, match=r"cannot load .*notes\.pt"):
        create_classifier(f"mini:{text}")
    other = tmp_path / "other.pt"
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, other)
    with pytest.raises(UserError, match=r"cannot load .*other\.pt"):
        create_classifier(f"mini:{other}")
    archive = tmp_path / "openai.pt"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("model/code/__torch__.py", "")
    with pytest.raises(UserError, match="TorchScript"):
        create_classifier(f"ViT-B-32-quickgelu:{archive}")


@pytest.mark.parametrize("templates", [[], ["a photo"], ["{} and {}"]])
def test_templates_need_one_gap(tiny: Callable[..., CLIPClassifier], templates: list[str]) -> None:
    with pytest.raises(UserError, match="template"):
        tiny().add_classes(["one"], templates)
