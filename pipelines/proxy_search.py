"""The pipeline of the proxy search: how many proxies, and how good the model with them is."""

# pyright: reportArgumentType=false, reportCallIssue=false
# KFP calls components with channels for values, and fills outputs itself.
from kfp import dsl

from components.finish import finish
from components.infnet_evaluate import infnet_evaluate
from components.infnet_prepare import infnet_prepare
from components.infnet_train import infnet_train
from components.infnet_tune import infnet_tune
from pipelines.steps import act, step

STEPS = ["prepare", "tune", "train", "evaluate"]


@dsl.pipeline(
    name="proxy-search",
    description="prepare → tune → train the best → evaluate",
)
def proxy_search(
    config: str,
    root: str,
    sets: list[str] = [],  # noqa: B006 - the default in the compiled pipeline
):
    """Search the counts of proxies, or what else `tune:` says; train the best and measure it.

    Args:
        config: path or URI of the configuration, or its YAML.
        root: directory or URI; `<root>/store` keeps what steps make, by content, and
            `<root>/runs/<run>` the records of each run.
        sets: keys to set in the configuration, `a.b=v`.
    """
    run = dsl.PIPELINE_JOB_NAME_PLACEHOLDER
    every = {"config": config, "root": root, "run": run}
    end = act("finish", finish(pipeline="proxy_search", root=root, run=run, steps=STEPS))
    with dsl.ExitHandler(end, name="main"):
        data = step("prepare", infnet_prepare(**every, sets=sets)).outputs["uri"]
        tuned = step("tune", infnet_tune(**every, sets=sets, data=data))
        best = {**every, "sets": tuned.outputs["sets"]}
        checkpoint = step("train", infnet_train(**best, data=data)).outputs["uri"]
        step("evaluate", infnet_evaluate(**best, data=data, checkpoint=checkpoint))
