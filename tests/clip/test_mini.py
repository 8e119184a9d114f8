"""The mini CLIP's world: drawings repeat, captions are true, pre-training is deterministic."""

import json
import math
from pathlib import Path

import pytest
import torch

from cl_clipfit.clip import create_classifier
from cl_clipfit.clip.mini import draw, glyphs, pretrain, shapes
from cl_clipfit.clip.mini.captions import build_captions, sample_pairs


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_drawings_depend_on_their_generator_alone() -> None:
    torch.manual_seed(1)
    first = shapes.sample_classes(range(100), seeded(), severity=0.5)
    letters = glyphs.sample_glyphs(glyphs.LETTER_NAMES, seeded())
    torch.manual_seed(2)
    assert torch.equal(first, shapes.sample_classes(range(100), seeded(), severity=0.5))
    assert torch.equal(letters, glyphs.sample_glyphs(glyphs.LETTER_NAMES, seeded()))
    assert not torch.equal(first, shapes.sample_classes(range(100), seeded(1), severity=0.5))
    assert first.shape == (100, 3, 32, 32)
    assert letters.dtype == torch.uint8


def test_severity_moves_images_further_from_their_domain() -> None:
    images = shapes.sample_classes(range(100), seeded()).float() / 255
    distances = [
        (shapes.shift_domain(images, seeded(), severity) - images).abs().mean().item()
        for severity in (0.01, 0.25, 0.5, 1.0)
    ]
    assert distances == sorted(distances)
    assert distances[0] < 0.02


@pytest.mark.parametrize("colour", shapes.CLASS_COLOURS)
def test_a_colour_is_the_colour_it_is_called(colour: str) -> None:
    squares = shapes.sample_shapes(["square"] * 20, [colour] * 20, ["solid"] * 20, seeded())
    centre = squares[:, :, 14:18, 14:18].float().mean((0, 2, 3)) / 255
    distances = {
        name: (centre - torch.tensor(rgb)).norm().item() for name, rgb in draw.COLOURS.items()
    }
    assert min(distances, key=distances.__getitem__) == colour


def test_textures_differ_and_outlines_are_hollow() -> None:
    masks = torch.stack([shapes.shape_mask("square")] * 5)
    fields = draw.texture_field(draw.TEXTURES, masks, seeded())
    solid, striped, dotted, checkered, outlined = fields[:, 0]
    assert solid.min() == 1
    for texture in (striped, dotted, checkered):
        assert 0.2 < texture.mean() < 0.8
    assert outlined[32, 32] < 0.01 < 0.99 < outlined[14, 32]


def test_captions_fit_their_images_and_only_those() -> None:
    table = build_captions()
    assert len(set(table.captions)) == len(table.captions)
    index = {caption: row for row, caption in enumerate(table.captions)}
    images = table.encode_facts(
        [("red", "striped", "circle"), ("blue", "solid", "circle"), ("digit three",)]
    )
    expected = {
        "a photo of a red circle.": [True, False, False],
        "a striped circle": [True, False, False],
        "a drawing of a circle.": [True, True, False],
        "a blue shape": [False, True, False],
        "the number three": [False, False, True],
        "the letter b": [False, False, False],
    }
    rows = torch.tensor([index[caption] for caption in expected])
    assert table.truth(rows, images).T.tolist() == list(expected.values())


def test_every_sampled_caption_fits_its_image() -> None:
    table = build_captions()
    images, captions, facts = sample_pairs(table, 64, seeded())
    assert images.shape == (64, 3, 32, 32)
    assert table.truth(captions, facts).diagonal().all()


def test_matching_loss_equals_the_hand_computed_value() -> None:
    logits = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    truth = torch.tensor([[True, False], [True, True]])
    by_image = (math.log(math.exp(2) + 1) - 2 + math.log(2)) / 2
    first = math.log(math.exp(2) + math.exp(1)) - 1.5
    second = math.log(1 + math.exp(1)) - 1
    expected = (by_image + (first + second) / 2) / 2
    assert pretrain.matching_loss(logits, truth).item() == pytest.approx(expected)


def test_a_short_pretraining_is_deterministic_and_learns() -> None:
    runs = []
    for _ in range(2):
        losses: list[float] = []
        state = pretrain.pretrain(
            steps=12,
            batch_size=32,
            report=lambda step, loss, _, log=losses: log.append(loss),
            report_every=4,
        )
        runs.append((state, losses))
    (first, losses), (second, again) = runs
    assert losses == again
    assert losses[-1] < losses[0]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["token_embedding.weight"].shape == (49408, 64)


def test_compact_and_full_token_tables_encode_alike() -> None:
    table = build_captions()
    tokens = pretrain._tokenize(table.captions)
    model, used, compact = pretrain.build_compact(tokens, seed=0)
    full = create_classifier("mini:random").clip
    full.load_state_dict(pretrain.full_state(model.half().float(), used, seed=0))
    rows = torch.arange(0, len(tokens), 97)
    with torch.no_grad():
        small, large = model.encode_text(compact[rows]), full.encode_text(tokens[rows])
    torch.testing.assert_close(small, large, atol=1e-5, rtol=1e-4)


def test_the_model_card_names_the_bundled_weights() -> None:
    identity = create_classifier("mini").identity
    assert identity is not None
    folder = Path(pretrain.MINI_FOLDER)
    assert identity.weights_sha256 in (folder / "MODEL_CARD.md").read_text()
    assert json.loads((folder / "mini.json").read_text())["vision_cfg"]["image_size"] == 32


def test_words_outside_of_pretraining_mean_nothing() -> None:
    """The card says so: their token rows are still the random ones they started with."""
    table = build_captions()
    used = pretrain._tokenize(table.captions).unique()
    model, _, _ = pretrain.build_compact(pretrain._tokenize(table.captions), seed=0)
    untrained = pretrain.full_state(model, used, seed=0)["token_embedding.weight"].float()
    shipped = create_classifier("mini").clip.token_embedding.weight
    same = (untrained == shipped).all(1)
    unused = torch.ones(len(same), dtype=torch.bool)
    unused[used] = False
    assert same[unused].all()
    assert not same[used].any()
    assert len(used) == 77
