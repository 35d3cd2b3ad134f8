"""Metrics with intervals, comparisons of models, and the `evaluate` and `predict` verbs."""
