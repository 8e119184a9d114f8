"""One file for each stream. A file dropped in here is a new scenario."""
