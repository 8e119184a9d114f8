"""A run's folder on disk: atomic writes, lock, manifest, checkpoints, result."""
