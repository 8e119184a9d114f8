"""`python -m cl_clipfit` does what `python run.py` does."""

import sys

from cl_clipfit.cli.app import main

sys.exit(main())
