"""Kubeflow pipelines and their command line: `python -m pipelines list | compile | run`.

Like `components`, a module here imports kfp, `components` and the standard library only; what a
command needs beside them it imports inside its function.
"""

PIPELINES = {"recommender": "pipelines.recommender:recommender"}
"""Every pipeline by name, and where its function is."""

PROGRAMS = {"recommender": "infnet"}
"""The command whose verb `deploy` puts the bundle of a pipeline on Serve."""
