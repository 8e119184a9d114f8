"""This machine: device, determinism, signals, memory, random number generators."""
