"""The model side: load any open_clip model, classify with it, and the bundled mini CLIP."""

from cl_clipfit.clip.classifier import CLIPClassifier, ModelIdentity
from cl_clipfit.clip.factory import DEFAULT_MODEL, MINI, create_classifier, parse_model
from cl_clipfit.clip.preprocess import Preprocess

__all__ = [
    "DEFAULT_MODEL",
    "MINI",
    "CLIPClassifier",
    "ModelIdentity",
    "Preprocess",
    "create_classifier",
    "parse_model",
]
