"""The pipeline of the language-model recommender: from all layers to a small model that answers."""

# pyright: reportArgumentType=false, reportCallIssue=false
# KFP calls components with channels for values, and fills outputs itself.
from kfp import dsl

from components.finish import finish
from components.layers_compact import layers_compact
from components.layers_deploy import layers_deploy
from components.layers_evaluate import layers_evaluate
from components.layers_export import layers_export
from components.layers_heal import layers_heal
from components.layers_pretrain import layers_pretrain
from components.layers_score import layers_score
from components.layers_select import layers_select
from pipelines.steps import act, step

STEPS = ["pretrain", "score", "select", "compact", "heal", "evaluate", "export", "deploy"]


@dsl.pipeline(
    name="compact-llm",
    description="(pretrain →) score → select → compact → heal → evaluate → export → deploy",
)
def compact_llm(
    config: str,
    root: str,
    model: str = "",
    serve_address: str = "",
    sets: list[str] = [],  # noqa: B006 - the default in the compiled pipeline
):
    """Keep the layers of a language model that recommending needs, heal it and serve it.

    Args:
        config: path or URI of the configuration, or its YAML.
        root: directory or URI; `<root>/store` keeps what steps make, by content, and
            `<root>/runs/<run>` the records of each run.
        model: a Hugging Face folder, a .gguf file or `ollama:NAME`. Empty: a small one is trained
            as `pretrain:` of the configuration says.
        serve_address: GCS address of the Ray cluster that serves. Empty: no deploy step.
        sets: keys to set in the configuration, `a.b=v`.
    """
    run = dsl.PIPELINE_JOB_NAME_PLACEHOLDER
    every = {"config": config, "root": root, "run": run, "sets": sets}
    ending = finish(pipeline="compact_llm", root=root, run=run, steps=STEPS, address=serve_address)
    end = act("finish", ending)
    with dsl.ExitHandler(end, name="main"):
        full = step("pretrain", layers_pretrain(**every, given=model)).outputs["uri"]
        scores = step("score", layers_score(**every, model=full)).outputs["uri"]
        plan = step("select", layers_select(**every, model=full, scores=scores)).outputs["uri"]
        compact = step("compact", layers_compact(**every, model=full, plan=plan)).outputs["uri"]
        healed = step("heal", layers_heal(**every, model=full, student=compact)).outputs["uri"]
        judged = layers_evaluate(**every, model=full, scores=scores, student=healed)
        step("evaluate", judged)
        exported = step("export", layers_export(**every, model=full, student=healed))
        exported.after(judged)  # nothing goes live before it is measured
        with dsl.If(serve_address != "", name="serve"):
            bundle = exported.outputs["uri"]
            act("deploy", layers_deploy(**every, bundle=bundle, address=serve_address))
