"""Kubeflow pipelines and their command line: `python -m pipelines list | compile | run`.

Like `components`, a module here imports kfp, `components` and the standard library only; what a
command needs beside them it imports inside its function.
"""

from dataclasses import dataclass

PIPELINES = {
    "recommender": "pipelines.recommender:recommender",
    "compact_llm": "pipelines.compact_llm:compact_llm",
    "side_by_side": "pipelines.side_by_side:side_by_side",
    "proxy_search": "pipelines.proxy_search:proxy_search",
}
"""Every pipeline by name, and where its function is."""


@dataclass(frozen=True)
class Application:
    """What a pipeline puts on Serve: one bundle behind one prefix."""

    program: str
    """The command whose verb `deploy` puts it there: `infnet` or `layer-select`."""
    deploy: str
    """Name of the step that deploys it."""
    export: str
    """Name of the step that makes its bundle."""
    route_prefix: str = ""
    """Where it answers; empty: where its own configuration says."""
    config: str = "config"
    """The argument of the pipeline that is its configuration."""
    sets: str = "sets"
    """The argument with the keys to set there."""
    live: str = "live"
    """The argument that says where its live bundle is recorded, if the pipeline has one."""

    @property
    def name(self) -> str:
        """What people call it: `scorer`, where it answers below `/scorer`."""
        return self.route_prefix.strip("/") or self.program


APPLICATIONS: dict[str, tuple[Application, ...]] = {
    "recommender": (Application("infnet", "deploy", "export"),),
    "compact_llm": (Application("layer-select", "deploy", "export"),),
    "side_by_side": (
        Application("infnet", "deploy_scorer", "export", "/scorer"),
        Application(
            "layer-select",
            "deploy_recommender",
            "export_llm",
            "/recommender",
            config="llm_config",
            sets="llm_sets",
            live="llm_live",
        ),
    ),
}
"""What `run --serve` deploys and asks, by pipeline."""
