"""One file per stream. To add a scenario, put a file here."""
