"""Image features of a frozen tower, encoded once for all tasks, methods and seeds of a command."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import PIL
import torch
from torch import Tensor

from cl_clipfit import __version__
from cl_clipfit.clip import CLIPClassifier
from cl_clipfit.data.source import Source
from cl_clipfit.data.streams import Scenario
from cl_clipfit.errors import UserError
from cl_clipfit.evaluation.feature_cache import FeatureCache, images_key
from cl_clipfit.runtime import launch
from cl_clipfit.runtime.out_of_memory import encode_images
from cl_clipfit.runtime.processes import all_have
from cl_clipfit.runtime.progress import Progress
from cl_clipfit.runtime.shares import TOGETHER, in_shared_batches


def with_features(
    scenario: Scenario, probes: Mapping[str, Source], encode: Callable[[Any], Tensor]
) -> tuple[Scenario, dict[str, Source]]:
    """Replace the test images of a stream and of probes by `encode(images)`."""
    scenario = scenario.with_images(scenario.train.images, encode(scenario.test.images))
    return scenario, encoded_probes(probes, encode)


def encoded_probes(
    probes: Mapping[str, Source], encode: Callable[[Any], Tensor]
) -> dict[str, Source]:
    """Replace the images of probes by `encode(images)`."""
    return {
        name: replace(p, test=replace(p.test, images=encode(p.test.images)))
        for name, p in probes.items()
    }


class FrozenImages:
    """Features of images under the pretrained image tower, kept in memory and on disk.

    A method that reads images only through `CLIPClassifier.image_features`, and does not change the
    image tower, gets features (N, d) instead of images.

    Args:
        model: the pretrained classifier.
        device: where to encode.
        display: receives progress.
        cache: where features are kept between commands.

    Attributes:
        batch_size: images at a time; fewer than `TOGETHER` once memory ran out.
    """

    def __init__(
        self,
        model: CLIPClassifier,
        device: torch.device,
        display: Progress,
        cache: FeatureCache | None = None,
    ) -> None:
        self.model, self.device, self.display = model, device, display
        self.cache = cache or FeatureCache()
        self.batch_size = TOGETHER
        self._known: dict[tuple[str, int], Tensor] = {}
        self._keeps = True  # until the cache refuses features

    def encode(
        self, scenario: Scenario, probes: Mapping[str, Source], train: bool, class_tokens: int = 0
    ) -> tuple[Scenario, dict[str, Source]]:
        """Replace test images, probes and, if they are used as they are, training images.

        Args:
            scenario: the stream.
            probes: data sets scored zero-shot.
            train: whether to encode the training images, which are not augmented then.
            class_tokens: blocks whose class tokens follow the features; see `image_rows`.
        """
        encode = partial(self.features, class_tokens=class_tokens)
        if train:
            images = self._train_features(scenario, encode)
            scenario = scenario.with_images(images, scenario.test.images)
        return with_features(scenario, probes, encode)

    def _train_features(self, scenario: Scenario, encode: Callable[[Any], Tensor]) -> Tensor:
        """Encode training images stream by stream: in other batches the last bits differ."""
        images, tasks = scenario.train.images, scenario.train.tasks
        if not scenario.parts or tasks is None:
            return encode(images)
        ends = [int((tasks < task).sum()) for task in scenario.parts]
        return torch.cat([encode(images[a:b]) for a, b in pairwise([0, *ends, len(images)])])

    def known(self, images: Any) -> Tensor | None:
        """Return the features (N, d) of images that this command has already encoded, else None."""
        return self._known.get((images_key(images), 0)) if self._known else None

    def features(self, images: Any, class_tokens: int = 0) -> Tensor:
        """Return (N, d), unit length, on the CPU; with class tokens, rows of `image_rows`."""
        if isinstance(images, Tensor) and images.dim() == 2:
            return images
        found_by = images_key(images), class_tokens
        if found_by not in self._known:
            key = self._key_of(*found_by)
            features = self.cache.get(key, len(images))
            if not all_have(features is not None) or features is None:
                features = encode_images(self, images, class_tokens)
                # The last bits of smaller batches differ.
                if self._keeps and self.batch_size == TOGETHER and launch.writes():
                    self._keep(key, features)
            self._known[found_by] = features
        return self._known[found_by]

    def is_kept(self, images: Any, class_tokens: int = 0) -> bool:
        """Return whether an earlier command has encoded images, or they are features already."""
        if isinstance(images, Tensor) and images.dim() == 2:
            return True
        return self.cache.has(self._key_of(images_key(images), class_tokens))

    def _keep(self, key: dict[str, Any], features: Tensor) -> None:
        try:
            self.cache.put(key, features)
        except UserError as error:  # only the next command has to encode them again
            self._keeps = False
            self.display.note(f"features are not kept: {error}")

    def _key_of(self, images: str, class_tokens: int) -> dict[str, Any]:
        tokens = {"class_tokens": class_tokens} if class_tokens else {}
        return {**self._key(), "images": images, **tokens}

    def _key(self) -> dict[str, Any]:
        identity = self.model.identity
        assert identity is not None
        return {
            "architecture": identity.architecture,
            "weights": identity.weights_sha256,
            "transform": repr(self.model.preprocess),
            "device": self.device.type,
            "precision": self.model.precision,
            "made by": [__version__, torch.__version__, PIL.__version__],
        }

    def in_batches(self, function: Callable[..., Tensor], images: Any) -> Tensor:
        """Apply a function to `batch_size` images at a time; to fewer once memory runs out.

        Several processes each take a share of the images, and gather the results.

        Raises:
            UserError: there is not memory enough for one image.
        """
        try:
            results, size = in_shared_batches(
                function, images, self.device, self.batch_size,
                progress=partial(self.display.count, "encoding images"),
            )  # fmt: skip
        finally:
            self.display.stop()
        if size != self.batch_size:
            self.batch_size = size
            self.display.warn(
                f"out of memory in encoding: {size} images at a time from now on; their features"
                " are not kept for other commands"
            )
        return results
