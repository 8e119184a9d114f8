"""One file for each method. A file dropped in here is a new strategy."""
