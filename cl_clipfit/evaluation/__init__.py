"""Scoring a model: test pass, frozen and reused features, landscapes, Fisher."""
