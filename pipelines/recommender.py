"""The pipeline of the multitask scorer: from the raw log to a model that answers."""

# pyright: reportArgumentType=false, reportCallIssue=false
# KFP calls components with channels for values, and fills outputs itself.
from kfp import dsl

from components.finish import finish
from components.infnet_deploy import infnet_deploy
from components.infnet_evaluate import infnet_evaluate
from components.infnet_export import infnet_export
from components.infnet_gate import infnet_gate
from components.infnet_prepare import infnet_prepare
from components.infnet_train import infnet_train
from pipelines.steps import act, step

STEPS = ["prepare", "train", "evaluate", "gate", "export", "deploy"]


@dsl.pipeline(
    name="recommender",
    description="prepare → train → evaluate → gate → (if not worse than live) export → deploy",
)
def recommender(
    config: str,
    root: str,
    serve_address: str = "",
    live: str = "",
    sets: list[str] = [],  # noqa: B006 - the default in the compiled pipeline
):
    """Train the multitask scorer and put it live if it is not worse than what is live.

    Args:
        config: path or URI of the configuration, or its YAML.
        root: directory or URI; `<root>/store` keeps what steps make, by content, and
            `<root>/runs/<run>` the records of each run.
        serve_address: GCS address of the Ray cluster that serves. Empty: no deploy step.
        live: where the live bundle is recorded. Empty: what `serve.live` of the configuration says.
        sets: keys to set in the configuration, `a.b=v`.
    """
    run = dsl.PIPELINE_JOB_NAME_PLACEHOLDER
    every = {"config": config, "root": root, "run": run, "sets": sets}
    ending = finish(pipeline="recommender", root=root, run=run, steps=STEPS, address=serve_address)
    end = act("finish", ending)
    with dsl.ExitHandler(end, name="main"):
        prepared = step("prepare", infnet_prepare(**every))
        data = prepared.outputs["uri"]
        trained = step("train", infnet_train(**every, data=data))
        checkpoint = trained.outputs["uri"]
        evaluated = step("evaluate", infnet_evaluate(**every, data=data, checkpoint=checkpoint))
        evaluation = evaluated.outputs["uri"]
        gate = step("gate", infnet_gate(**every, evaluation=evaluation, live=live))
        with dsl.If(gate.outputs["Output"] == "pass", name="not-worse-than-live"):
            exported = step("export", infnet_export(**every, checkpoint=checkpoint))
            bundle = exported.outputs["uri"]
            with dsl.If(serve_address != "", name="serve"):
                act(
                    "deploy",
                    infnet_deploy(**every, bundle=bundle, address=serve_address, live=live),
                )
