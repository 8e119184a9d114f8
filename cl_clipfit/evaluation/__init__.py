"""Evaluation of a model: test pass, features, loss landscapes, Fisher, moments of LayerNorms."""
