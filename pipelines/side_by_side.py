"""The whole mission in one DAG: the multitask scorer and the language-model recommender."""

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
from components.infnet_tune import infnet_tune
from components.layers_compact import layers_compact
from components.layers_deploy import layers_deploy
from components.layers_embed import layers_embed
from components.layers_evaluate import layers_evaluate
from components.layers_export import layers_export
from components.layers_heal import layers_heal
from components.layers_pretrain import layers_pretrain
from components.layers_score import layers_score
from components.layers_select import layers_select
from pipelines.steps import act, step

SCORER = ["prepare", "tune", "train", "evaluate", "gate", "export", "deploy_scorer"]
RECOMMENDER = [
    "pretrain",
    "score",
    "select",
    "compact",
    "heal",
    "evaluate_llm",
    "export_llm",
    "deploy_recommender",
]
FEATURES = ["embed", "prepare_llm_features", "train_llm_features", "evaluate_llm_features"]
STEPS = [*SCORER, *RECOMMENDER, *FEATURES]
BRANCHES = {
    "The scorer": SCORER,
    "The recommender of few layers": RECOMMENDER,
    "The recommender's vectors of items in the scorer": FEATURES,
}


@dsl.pipeline(
    name="side-by-side",
    description="the multitask scorer ‖ the recommender of a language model's few layers → both "
    "on one Ray Serve",
)
def side_by_side(
    config: str,
    llm_config: str,
    root: str,
    model: str = "",
    serve_address: str = "",
    live: str = "",
    llm_live: str = "",
    search: bool = True,
    llm_features: bool = False,
    item_column: str = "video_id",
    sets: list[str] = [],  # noqa: B006 - the default in the compiled pipeline
    llm_sets: list[str] = [],  # noqa: B006
):
    """Train both recommenders, measure them, and serve them side by side.

    Args:
        config: path or URI of the scorer's configuration, or its YAML.
        llm_config: the same of the language-model recommender.
        root: directory or URI; `<root>/store` keeps what steps make, by content, and
            `<root>/runs/<run>` the records of each run.
        model: a Hugging Face folder, a .gguf file or `ollama:NAME`. Empty: a small one is trained
            as `pretrain:` of `llm_config` says.
        serve_address: GCS address of the Ray cluster that serves `/scorer` and `/recommender`.
            Empty: no deploy steps.
        live: where the live bundle of the scorer is recorded. Empty: what `serve.live` of its
            configuration says.
        llm_live: the same of the language-model recommender.
        search: look for the counts of proxies first, as `tune:` of the scorer's configuration says;
            the scorer is trained with the best.
        llm_features: train the scorer once more with the smaller model's vectors of items as a
            feature, and measure what they bring. The items of both logs must be the same.
        item_column: for `llm_features`: column of the scorer's log with the items.
        sets: keys to set in the scorer's configuration, `a.b=v`.
        llm_sets: keys to set in the configuration of the language-model recommender.
    """
    run = dsl.PIPELINE_JOB_NAME_PLACEHOLDER
    every = {"config": config, "root": root, "run": run}
    layers = {"config": llm_config, "root": root, "run": run, "sets": llm_sets}
    ending = finish(
        pipeline="side_by_side",
        root=root,
        run=run,
        steps=STEPS,
        address=serve_address,
        branches=BRANCHES,
    )
    with dsl.ExitHandler(act("finish", ending), name="main"):
        data = step("prepare", infnet_prepare(**every, sets=sets)).outputs["uri"]
        tuned = step("tune", infnet_tune(**every, sets=sets, data=data, wanted=search))
        scorer = {**every, "sets": tuned.outputs["sets"]}
        checkpoint = step("train", infnet_train(**scorer, data=data)).outputs["uri"]
        judged = step("evaluate", infnet_evaluate(**scorer, data=data, checkpoint=checkpoint))
        evaluation = judged.outputs["uri"]
        gate = step("gate", infnet_gate(**scorer, evaluation=evaluation, live=live))
        with dsl.If(gate.outputs["Output"] == "pass", name="not-worse-than-live"):
            bundle = step("export", infnet_export(**scorer, checkpoint=checkpoint)).outputs["uri"]
            with dsl.If(serve_address != "", name="serve-scorer"):
                deployed = infnet_deploy(
                    **scorer,
                    bundle=bundle,
                    address=serve_address,
                    live=live,
                    route_prefix="/scorer",
                    step="deploy_scorer",
                )
                act("deploy_scorer", deployed)

        full = step("pretrain", layers_pretrain(**layers, given=model)).outputs["uri"]
        scores = step("score", layers_score(**layers, model=full)).outputs["uri"]
        plan = step("select", layers_select(**layers, model=full, scores=scores)).outputs["uri"]
        compact = step("compact", layers_compact(**layers, model=full, plan=plan)).outputs["uri"]
        healed = step("heal", layers_heal(**layers, model=full, student=compact)).outputs["uri"]
        measured = layers_evaluate(
            **layers, model=full, scores=scores, student=healed, step="evaluate_llm"
        )
        step("evaluate_llm", measured)
        exported = layers_export(**layers, model=full, student=healed, step="export_llm")
        step("export_llm", exported).after(measured)  # nothing goes live before it is measured
        with dsl.If(serve_address != "", name="serve-recommender"):
            deployed = layers_deploy(
                **layers,
                bundle=exported.outputs["uri"],
                address=serve_address,
                live=llm_live,
                route_prefix="/recommender",
                step="deploy_recommender",
            )
            act("deploy_recommender", deployed)

        with dsl.If(llm_features == True, name="llm-features"):  # noqa: E712 - a KFP condition
            vectors = layers_embed(
                **layers,
                model=full,
                student=healed,
                item_column=item_column,
                scorer_sets=scorer["sets"],
            )
            step("embed", vectors)
            richer = {**scorer, "sets": vectors.outputs["scorer_sets"]}
            more = step(
                "prepare_llm_features", infnet_prepare(**richer, step="prepare_llm_features")
            ).outputs["uri"]
            trained = step(
                "train_llm_features",
                infnet_train(**richer, data=more, step="train_llm_features"),
            ).outputs["uri"]
            brought = infnet_evaluate(
                **richer,
                data=more,
                checkpoint=trained,
                without=evaluation,
                step="evaluate_llm_features",
            )
            step("evaluate_llm_features", brought)
