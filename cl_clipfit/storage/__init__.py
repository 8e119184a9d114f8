"""A run's folder on disk: atomic files, lock, manifest, checkpoints, result."""
