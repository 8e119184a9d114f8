"""CCA-CL: compare images and class names where they correlate most, on random Fourier features."""

import torch
from pydantic import Field
from torch import Tensor

from cl_clipfit import (
    AfterFirstSession,
    Positive,
    RandomFeaturesOptions,
    RandomFeaturesStrategy,
    Share,
    StatisticsStrategy,
)
from cl_clipfit.heads.canonical import CanonicalHead, canonical_head
from cl_clipfit.heads.projection import fourier_features
from cl_clipfit.heads.statistics import Statistics

NAME = "cca"
GROUP = "closed-form heads"
PAPER = "Subspace Alignment for CLIP-based Continual Learning via CCA (CCA-CL), CVPR 2026"
NEEDS = "sums of random features and their products (statistics)"
PUBLISHED = {"width": 6144}


class CCAOptions(RandomFeaturesOptions):
    """Settings of CCA-CL; other settings of its label go to the method of the first session."""

    sigma: Positive = Field(1.0, description="width of the kernel of the random features")
    penalty: Positive = Field(1e-4, description="added to the variances of both modalities")
    energy: Share = Field(0.999, description="share of the squared correlations that is kept")
    first_session: str = Field(
        "none", description="the method that tunes the towers on the first task"
    )


class CCA(AfterFirstSession, RandomFeaturesStrategy, StatisticsStrategy):
    """Canonical correlation analysis of all images seen and the texts of their classes.

    Both are mapped to random Fourier features and to the subspace of their canonical directions,
    each weighted by its correlation; an image is of the class with the nearest direction.

    The released code and the abstract were read, not the paper. Differences from that code, which
    (a) centres every batch by its own mean, so that the differences between tasks are not in its
    covariances, and the result depends on the batches; (b) whitens the text twice; (c) keeps no
    direction if the first one has all the energy, as with two classes; (d) adds the penalty and
    then raises smaller variances to it. Here the sums over all images give the analysis of the
    whole stream, in any order. The paper tunes both towers on the first task by CLIP's own loss,
    over six epochs; here `first_session` names any method that does so, and none does by default.
    """

    extends = True
    options_class = CCAOptions

    def embed(self, rows: Tensor) -> Tensor:
        """Map features (N, d) of images or texts to random Fourier features (N, width)."""
        projection = self.projection(rows.shape[1])
        return fourier_features(rows, projection, self.head_options.sigma, self.seeds.init)

    def solve(self, statistics: Statistics) -> CanonicalHead:
        """Return the analysis of the images so far and the texts of all classes."""
        with torch.no_grad():
            text = self.embed(self.model.text_features().cpu().float())
        return canonical_head(statistics, text, self.head_options.penalty, self.head_options.energy)
