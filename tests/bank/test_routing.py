"""Routing against scikit-learn and by hand; mixed batches against a loop over tasks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import NearestCentroid
from torch import Tensor, nn

from cl_clipfit.bank.per_sample_norms import mixable, mixed_image_features
from cl_clipfit.bank.routing import TaskRouter, class_statistics, route, task_posterior
from cl_clipfit.clip import CLIPClassifier, create_classifier
from cl_clipfit.training.selection import select_clipfit, select_layer_norms
from tests.support.tiny import TINY_CLIP

WIDTH, CLASSES, PER_TASK = 6, 9, 3  # 3 tasks of 3 classes


def draw(per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return correlated points round fixed class centres, of unit length, and labels."""
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(1))
    shape = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    noise = torch.randn(len(labels), WIDTH, generator=torch.Generator().manual_seed(seed))
    return F.normalize(centres[labels] + 0.7 * noise @ shape, dim=-1), labels


def by_task(features: Tensor, labels: Tensor) -> list[dict[str, Tensor]]:
    tasks = labels // PER_TASK
    return [class_statistics(features[tasks == t], labels[tasks == t]) for t in range(3)]


def test_statistics_by_hand() -> None:
    features = torch.tensor([[0.0, 0], [2, 0], [5, 5], [0, 2], [2, 2]])
    found = class_statistics(features, torch.tensor([7, 7, 3, 7, 7], dtype=torch.int32))
    assert found["labels"].tolist() == [3, 7] and found["counts"].tolist() == [1, 4]
    assert found["means"].tolist() == [[5, 5], [1, 1]]
    assert found["scatter"].tolist() == [[4, 0], [0, 4]]
    kinds = [found[n].dtype for n in ("labels", "counts", "means", "scatter")]
    assert kinds == [torch.int64, torch.int64, torch.float32, torch.float32]


def test_statistics_add_up_in_double_precision() -> None:
    features, labels = draw(40, 3)
    features += 1000  # deviations that float32 sums would lose
    found = class_statistics(features, labels)
    exact = features.numpy().astype(np.float64)
    groups = [exact[labels == c] for c in range(CLASSES)]
    scatter = sum(len(g) * np.cov(g.T, bias=True) for g in groups)
    assert np.allclose(found["scatter"], scatter, rtol=1e-5, atol=1e-6)
    assert np.array_equal(found["means"], np.array([g.mean(0) for g in groups], dtype=np.float32))


@pytest.mark.filterwarnings("ignore:invalid value")  # one point a class has no variance
def test_nearest_mean_is_nearest_centroid_of_unit_means() -> None:
    features, labels = draw(30, 4)
    queries, _ = draw(40, 5)
    statistics = by_task(features, labels)
    means = F.normalize(torch.cat([s["means"] for s in statistics]), dim=-1)
    wanted = NearestCentroid().fit(means, np.arange(CLASSES)).predict(queries) // PER_TASK
    found = route(queries, statistics)
    assert found.dtype == torch.int64 and np.array_equal(found, wanted)
    # on the data themselves it is another rule, which weighs the length of a mean too
    other = NearestCentroid().fit(features, labels).predict(queries) // PER_TASK
    assert 0 < (other != wanted).sum() < len(wanted) / 4
    assert torch.equal(route(7 * queries, statistics), found)


def test_nearest_mean_of_equally_long_means_is_nearest_centroid() -> None:
    corners = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])  # turned about the same centre
    steps = torch.tensor([-0.3, 0.1, 0.4])
    angles = torch.atan2(corners[:, 1], corners[:, 0])[:, None] + steps
    features = torch.stack([angles.cos(), angles.sin()], -1).flatten(0, 1)
    labels = torch.arange(4).repeat_interleave(3)
    statistics = [class_statistics(features[:6], labels[:6]),
                  class_statistics(features[6:], labels[6:])]  # fmt: skip
    queries = F.normalize(torch.randn(200, 2), dim=-1)
    wanted = NearestCentroid().fit(features, labels).predict(queries) // 2
    assert np.array_equal(route(queries, statistics), wanted)


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 0.6, 1.0])
def test_gaussian_is_linear_discriminant_analysis(shrinkage: float) -> None:
    features, labels = draw(30, 6)  # equal counts: priors and the divisor do not matter
    queries, _ = draw(40, 7)
    priors = np.full(CLASSES, 1 / CLASSES)
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=priors)
    exact = reference.fit(features.double().numpy(), labels.numpy())
    wanted = exact.predict(queries.double().numpy()) // PER_TASK
    found = route(queries, by_task(features, labels), "gaussian", shrinkage)
    assert np.array_equal(found, wanted)
    if shrinkage < 1:
        assert not torch.equal(found, route(queries, by_task(features, labels)))


def test_gaussian_with_unequal_counts_is_the_mahalanobis_distance() -> None:
    features, labels = draw(20, 8)
    keep = torch.rand(len(labels), generator=torch.Generator().manual_seed(9)) < labels / CLASSES
    features, labels = features[keep], labels[keep]
    tasks = [labels < 4, (labels >= 4) & (labels < 5), labels >= 5]
    queries, _ = draw(25, 10)
    classes = labels.unique().tolist()
    points = {c: features[labels == c].double().numpy() for c in classes}
    pooled = sum((len(p) - 1) * np.cov(p.T) for p in points.values() if len(p) > 1)
    covariance = pooled / (len(labels) - len(classes))
    shrunk = 0.7 * covariance + 0.3 * np.trace(covariance) / WIDTH * np.eye(WIDTH)
    inverse = np.linalg.inv(shrunk)
    off = queries.double().numpy()[:, None] - np.array([p.mean(0) for p in points.values()])
    nearest = np.einsum("nci,ij,ncj->nc", off, inverse, off).argmin(1)
    owner = np.array([0 if c < 4 else 1 if c < 5 else 2 for c in classes])
    statistics = [class_statistics(features[t], labels[t]) for t in tasks]
    assert np.array_equal(route(queries, statistics, "gaussian", 0.3), owner[nearest])


def test_routing_refuses_what_it_cannot_do() -> None:
    features, labels = draw(4, 11)
    statistics = by_task(features, labels)
    with pytest.raises(ValueError, match="no task"):
        route(features, [])
    with pytest.raises(ValueError, match="width"):
        route(features[:, :3], statistics)
    with pytest.raises(ValueError, match="unknown rule"):
        route(features, statistics, "nearest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="outside 0 to 1"):
        route(features, statistics, "gaussian", 1.5)
    one_each = [class_statistics(features[::4], labels[::4])]
    with pytest.raises(ValueError, match="two different images"):
        route(features, one_each, "gaussian")
    few = [class_statistics(features[:5], labels[:5])]
    with pytest.raises(ValueError, match="5 images are too few for a covariance of 6 dimensions"):
        route(features, few, "gaussian", 0)
    flat = [class_statistics(features * torch.tensor([1, 1, 1, 1, 1, 0]), labels)]
    with pytest.raises(ValueError, match="singular"):
        route(features, flat, "gaussian", 0)
    assert route(features, one_each).tolist() == [0] * len(features)
    for wrong in ((features[:0], labels[:0]), (features, labels[1:]), (features[0], labels[:6])):
        with pytest.raises(ValueError, match="expected features"):
            class_statistics(*wrong)


# ---- mixed batches ------------------------------------------------------------------------------


def small(vision: dict[str, Any], image_size: int = 16, **kwargs: Any) -> CLIPClassifier:
    """Return a small random CLIP with another image tower."""
    config = {"image_size": image_size, **vision}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = open_clip.CLIP(16, config, TINY_CLIP["text_cfg"], **kwargs)
    settings = {**PreprocessCfg().__dict__, "size": image_size}
    open_clip.set_model_preprocess_cfg(clip, settings)
    return CLIPClassifier(clip, open_clip.SimpleTokenizer(context_length=12))


VIT = TINY_CLIP["vision_cfg"]
MODELS: dict[str, Callable[[], CLIPClassifier]] = {
    "tiny": lambda: small(VIT),
    "mini": lambda: create_classifier("mini"),
    "average-pool": lambda: small(VIT | {"pool_type": "avg", "final_ln_after_pool": True}),
    "layer-scale": lambda: small(VIT | {"ls_init_value": 0.1, "no_ln_pre": True}),
    "fp32-norms": lambda: small(VIT, cast_dtype=torch.bfloat16),
    "timm": lambda: small({"timm_model_name": "test_vit", "timm_proj": "linear"}, 32),
    "double": lambda: small(VIT).double(),
}


def random_deltas(model: CLIPClassifier, tasks: int) -> list[dict[str, Tensor]]:
    """Return values of CLIPFit's selection, texts too, far from the pretrained ones."""
    chosen = select_clipfit(model.clip)
    draws = torch.Generator().manual_seed(5)
    selection = model.train_only([*chosen.text, *chosen.image])
    model.requires_grad_(False)
    return [
        {n: p.float() + 0.5 * torch.randn(p.shape, generator=draws) for n, p in selection.items()}
        for _ in range(tasks)
    ]


@torch.no_grad()
def looped(
    model: CLIPClassifier, images: Tensor, choices: Tensor, deltas: list[dict[str, Tensor]]
) -> Tensor:
    """Encode task by task."""
    rows: list[Tensor] = [torch.empty(0)] * len(images)
    for task, delta in enumerate(deltas):
        with model.weights(delta):
            for index in (choices == task).nonzero().flatten().tolist():
                rows[index] = model.image_features(images[index : index + 1])[0]
    return torch.stack(rows)


def images_of(count: int, size: int = 16) -> Tensor:
    draws = torch.Generator().manual_seed(6)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=draws)


@pytest.mark.parametrize("name", MODELS)
def test_a_mixed_batch_equals_the_loop(name: str) -> None:
    model = MODELS[name]()
    deltas, choices = random_deltas(model, 3), torch.tensor([2, 0, 1, 1, 2, 0, 0])
    images: Tensor = images_of(7)
    if name == "double":
        images = torch.randn(7, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        before, state = model.image_features(images), model.state_dict()
    state = {n: v.clone() for n, v in state.items()}
    assert mixable(model, deltas[0])
    found = mixed_image_features(model, images, choices, deltas)
    wanted = looped(model, images, choices, deltas)
    assert found.dtype == wanted.dtype and not found.requires_grad
    tolerance = 1e-12 if name == "double" else 1e-5
    assert (found - wanted).abs().max() < tolerance
    assert (found - before).abs().max() > 0.01 and (wanted[2] - wanted[0]).abs().max() > 0.01
    # the model is as it was: weights, forward, and no trace on its modules
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model.image_features(images), before)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_part_of_the_norms_may_differ_and_one_sample_suffices() -> None:
    model, images = small(VIT), images_of(3)
    names = {"clip.visual.ln_post.bias", "clip.visual.transformer.resblocks.1.ln_2.weight"}
    deltas = [{n: d[n] for n in names} for d in random_deltas(model, 2)]
    for choices in (torch.tensor([1, 0, 1]), torch.tensor([1])):
        found = mixed_image_features(model, images[: len(choices)], choices, deltas)
        wanted = looped(model, images[: len(choices)], choices, deltas)
        assert (found - wanted).abs().max() < 1e-5
    texts = [{"clip.transformer.resblocks.0.mlp.c_proj.bias": torch.ones(16)}]
    plain = mixed_image_features(model, images, torch.zeros(3).long(), texts)
    with torch.no_grad():
        assert torch.equal(plain, model.image_features(images))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_type(dtype: torch.dtype) -> None:
    model = small(VIT).to(dtype)
    deltas, choices = random_deltas(model, 2), torch.tensor([1, 0, 1, 0])
    images = torch.randn(4, 3, 16, 16).to(dtype)
    found = mixed_image_features(model, images, choices, deltas)
    wanted = looped(model, images, choices, deltas)
    assert found.dtype == wanted.dtype == dtype
    # no further from float32 than half precision is anyway
    exact = looped(small(VIT).to(dtype).float(), images.float(), choices,
                   [{n: v.to(dtype).float() for n, v in d.items()} for d in deltas])  # fmt: skip
    assert (found - exact).abs().max() < 1.5 * (wanted - exact).abs().max()


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("broken")


def test_an_exception_leaves_nothing_behind() -> None:
    model, images = small(VIT), images_of(2)
    deltas = random_deltas(model, 2)
    norm, calls = model.clip.visual.ln_pre, []

    def hooked(x: Tensor) -> Tensor:  # as another library may have left one
        calls.append(len(x))
        return type(norm).forward(norm, x)

    norm.forward = hooked
    kept, model.clip.visual.transformer.resblocks[1].mlp = (
        model.clip.visual.transformer.resblocks[1].mlp, Failing(),
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="broken"):
        mixed_image_features(model, images, torch.tensor([0, 1]), deltas[:2])
    model.clip.visual.transformer.resblocks[1].mlp = kept
    assert [m for m in model.modules() if "forward" in vars(m)] == [norm]
    assert norm.forward is hooked and not calls
    model.image_features(images)
    assert calls == [2]


def test_what_cannot_be_mixed() -> None:
    model = small(VIT)
    name = "clip.visual.transformer.resblocks.0.mlp.c_proj.bias"
    assert mixable(model, ["clip.logit_scale", "clip.visual.ln_post.weight"])
    for wrong in (name, "clip.visual.proj", "clip.visual.class_embedding", "no.such"):
        assert not mixable(model, ["clip.visual.ln_post.weight", wrong])
    values = {name: dict(model.named_parameters())[name].detach()}
    images, choices = images_of(2), torch.tensor([0, 0])
    with pytest.raises(ValueError, match=f"{name} cannot differ"):
        mixed_image_features(model, images, choices, [values])
    deltas = random_deltas(model, 2)
    for bad, message in (
        (torch.tensor([0]), "need choices"),
        (torch.tensor([0, 2]), "from 0 to 1"),
        (torch.tensor([-1, 0]), "from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            mixed_image_features(model, images, bad, deltas)
    with pytest.raises(ValueError, match="at least one"):
        mixed_image_features(model, images, choices, [])
    with pytest.raises(ValueError, match="the same parameters"):
        mixed_image_features(model, images, choices, [deltas[0], {}])
    wide = [{n: torch.ones(5) for n in deltas[0]}]
    with pytest.raises(ValueError, match=r"has shape \[5\] in the deltas"):
        mixed_image_features(model, images, choices, wide)


def test_towers_whose_norms_see_no_batch_are_refused() -> None:
    pooled = VIT | {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}
    towers = {
        "CoCa's queries": small(pooled | {"output_tokens": False}),
        "channels first": small({"timm_model_name": "test_convnext", "timm_pool": ""}, 32),
        "tokens first": small(VIT),
    }
    towers["tokens first"].clip.visual.transformer.batch_first = False
    for tower, model in towers.items():
        norms = {id(p) for p in select_layer_norms(model.clip)}
        names = [n for n, p in model.named_parameters() if id(p) in norms]
        assert names and not mixable(model, names), tower
    # a tower that no rule knows: noticed by the shape
    model = small(VIT)
    deltas = random_deltas(model, 1)
    norm = model.clip.visual.ln_pre
    model.clip.visual.ln_pre = nn.Sequential(nn.Flatten(0, 1), norm, nn.Unflatten(0, (2, 5)))
    renamed = [{n.replace("ln_pre", "ln_pre.1"): v for n, v in deltas[0].items()}]
    with pytest.raises(ValueError, match=r"gives a LayerNorm \[10, 32\] for 2 images"):
        mixed_image_features(model, images_of(2), torch.tensor([0, 0]), renamed)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_router_takes_statistics_and_images_a_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, labels = draw(30, 4)
    queries, _ = draw(7, 5)
    whole = by_task(features, labels)
    posterior = task_posterior(queries, whole, 0.2)
    monkeypatch.setattr("cl_clipfit.bank.routing._ROWS", 11)
    monkeypatch.setattr("cl_clipfit.bank.routing._DISTANCES", 4 * CLASSES)
    pieces = by_task(features, labels)
    for one, other in zip(whole, pieces, strict=True):
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-7)
    rule: Any
    for rule in ("nearest-mean", "gaussian"):
        router = TaskRouter(iter(pieces), rule, 0.2)  # a generator: none is kept
        assert torch.equal(router.route(queries), route(queries, whole, rule, 0.2))
    torch.testing.assert_close(router.posterior(queries), posterior)
    with pytest.raises(ValueError, match="only the gaussian rule"):
        TaskRouter(pieces).posterior(queries)
    narrow = class_statistics(features[:, :3], labels)
    with pytest.raises(ValueError, match=r"different widths, \[3, 6\]"):
        TaskRouter([pieces[0], narrow])
