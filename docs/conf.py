"""The documentation site: `make docs` builds it from this folder and the code, as Sphinx reads it.

Pages that are not committed are written into `docs/reference/` before every build: see `_ext/`.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs/_ext")]

from cl_clipfit import __version__  # noqa: E402 - from this checkout

project = "cl_clipfit"
author = copyright = "the cl_clipfit developers"
version = release = __version__
html_title = f"cl_clipfit {__version__}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "pages"]
exclude_patterns = ["_ext"]
smartquotes = False  # options begin with two hyphens
html_theme = "furo"
html_copy_source = False
html_show_sourcelink = False

myst_heading_anchors = 4  # links name headings as a code host does
default_role = "code"  # single backticks in docstrings
toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90
napoleon_numpy_docstring = False
napoleon_use_ivar = True
