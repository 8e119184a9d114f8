"""What each subcommand of `run.py` does, behind the options that `cli.py` reads."""
