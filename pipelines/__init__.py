"""Kubeflow pipelines and their command line: `python -m pipelines list | compile | run`.

Like `components`, a module here imports kfp, `components` and the standard library only; what a
command needs beside them it imports inside its function.
"""

PIPELINES = {
    "recommender": "pipelines.recommender:recommender",
    "compact_llm": "pipelines.compact_llm:compact_llm",
}
"""Every pipeline by name, and where its function is."""

PROGRAMS = {"recommender": "infnet", "compact_llm": "layer-select"}
"""The command whose verb `deploy` puts the bundle of a pipeline on Serve."""
