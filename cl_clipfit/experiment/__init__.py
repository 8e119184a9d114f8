"""From a command to a finished run: plan, prepare, build, run, reopen."""
