"""The HTML report: one file without scripts, which opens offline."""
