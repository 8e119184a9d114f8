"""The model: load any open_clip model, classify with it, and the bundled mini CLIP."""

from cl_clipfit.clip.classifier import CLIPClassifier, ModelIdentity
from cl_clipfit.clip.loading.factory import check_model, create_classifier
from cl_clipfit.clip.loading.names import DEFAULT_MODEL, MINI, parse_model
from cl_clipfit.clip.preprocess import Preprocess

__all__ = [
    "DEFAULT_MODEL",
    "MINI",
    "CLIPClassifier",
    "ModelIdentity",
    "Preprocess",
    "check_model",
    "create_classifier",
    "parse_model",
]
