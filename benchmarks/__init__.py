"""Measurements that no test needs; each file is a command, as `python -m benchmarks.NAME`."""
