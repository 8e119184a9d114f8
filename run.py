"""Start cl_clipfit: `python run.py --help`."""

import sys

try:
    from cl_clipfit.cli.app import main

    if __name__ == "__main__":
        sys.exit(main())
except KeyboardInterrupt:  # before the command line handles signals
    print("stopped by SIGINT", file=sys.stderr)
    sys.exit(130)
except ModuleNotFoundError as missing:
    sys.exit(
        f"error: {missing.name} is not installed. Type: make demo; then .venv/bin/python run.py"
    )
