"""Closed-form classifiers on features: pure functions on tensors, without a model or Avalanche."""
