"""The model side: load any open_clip model, classify with it, and the bundled mini CLIP."""

from cl_clipfit.clip.classifier import CLIPClassifier, ModelIdentity
from cl_clipfit.clip.factory import check_model, create_classifier
from cl_clipfit.clip.preprocess import Preprocess
from cl_clipfit.clip.weights import DEFAULT_MODEL, MINI, parse_model

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
