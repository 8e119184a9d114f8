"""Merge trained values, measure how far they moved, and walk between them: pure functions."""

from cl_clipfit.merging.combine import (
    Values,
    dare,
    fisher,
    interpolate,
    latest,
    magmax,
    mean,
    task_arithmetic,
    ties,
)
from cl_clipfit.merging.decomposed import decomposed_fusion
from cl_clipfit.merging.distance import (
    Pull,
    coefficients,
    direction_cosine,
    distance,
    group_squares,
    length_ratio,
    proximal_step,
)
from cl_clipfit.merging.path import Plane, barrier, check_path_rule, path_positions, plane, segment
from cl_clipfit.merging.regression import Moments, pooled_moments, regmean

__all__ = [
    "Moments",
    "Plane",
    "Pull",
    "Values",
    "barrier",
    "check_path_rule",
    "coefficients",
    "dare",
    "decomposed_fusion",
    "direction_cosine",
    "distance",
    "fisher",
    "group_squares",
    "interpolate",
    "latest",
    "length_ratio",
    "magmax",
    "mean",
    "path_positions",
    "plane",
    "pooled_moments",
    "proximal_step",
    "regmean",
    "segment",
    "task_arithmetic",
    "ties",
]
