"""How a command names a strategy or scenario: `NAME`, or with settings, `NAME:key=value,...`."""

import re
from typing import Any

from cl_clipfit.config import parse_settings
from cl_clipfit.errors import UserError


def split_label(label: str, option: str = "--strategy") -> tuple[str, dict[str, Any]]:
    """Split `NAME[:key=value,...]`, a strategy or scenario with settings of its own.

    Raises:
        UserError: settings of another form.

    Example:
        >>> split_label("full:ce_scope=task,lr=1e-4")
        ('full', {'ce_scope': 'task', 'lr': '1e-4'})
        >>> split_label("clipfit:vocabulary=[cat, dog],kd=cosine")
        ('clipfit', {'vocabulary': ['cat', 'dog'], 'kd': 'cosine'})
    """
    name, colon, text = label.strip().partition(":")
    settings: dict[str, Any] = {}
    for part in re.split(r",(?![^\[]*\])", text) if colon else ():  # not at commas in brackets
        key, equals, value = part.strip().partition("=")
        if not (name and equals and key.isidentifier()):
            example = "clipfit:kd_weight=2" if option == "--strategy" else "mtil:order=2"
            raise UserError(f"{option} {label}: expected NAME:key=value,key=value, as in {example}")
        settings |= parse_settings([f"{name}.{key}={value}"]).get(name, {})
    return name, settings
