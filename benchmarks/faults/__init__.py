"""Faults on purpose, by the hundred: kills, damaged files, failing writes, bad input, races."""
