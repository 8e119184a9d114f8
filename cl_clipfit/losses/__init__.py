"""Distances to zero-shot CLIP, as pure functions."""
