"""What each subcommand of `run.py` does; `cl_clipfit.cli` defines their options."""
