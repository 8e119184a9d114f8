"""Evaluation of a model: test pass, frozen and shared features, loss landscapes, Fisher."""
