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
from cl_clipfit.merging.distance import (
    direction_cosine,
    distance,
    fisher_distance,
    group_distances,
    length_ratio,
    relative_distance,
)
from cl_clipfit.merging.path import Plane, barrier, check_path_rule, path_positions, plane, segment

__all__ = [
    "Plane",
    "Values",
    "barrier",
    "check_path_rule",
    "dare",
    "direction_cosine",
    "distance",
    "fisher",
    "fisher_distance",
    "group_distances",
    "interpolate",
    "latest",
    "length_ratio",
    "magmax",
    "mean",
    "path_positions",
    "plane",
    "relative_distance",
    "segment",
    "task_arithmetic",
    "ties",
]
