"""`layer-select select`: which layers stay."""

# pyright: reportInvalidTypeForm=false
# KFP reads the named outputs from the annotation itself.
from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Artifact, Metrics, Output

from components.image import IMAGE
from components.passthroughs import PASSTHROUGHS


@dsl.component(base_image=IMAGE, install_kfp_package=False, task_config_passthroughs=PASSTHROUGHS)
def layers_select(
    plan: Output[Artifact],
    metrics: Output[Metrics],
    report: Output[HTML],
    task_config: dsl.TaskConfig,
    config: str,
    root: str,
    run: str,
    model: str,
    scores: str,
    step: str = "select",
    sets: list[str] = [],  # noqa: B006 - the default in the compiled component
) -> NamedTuple("Outputs", [("uri", str)]):
    """Choose the layers that stay, by what the task loses, under a budget.

    Args:
        plan: the plan, where it stands in the store.
        metrics: loss and metrics of the chosen layers on the test samples, and of other sets.
        report: the search and the comparison.
        task_config: resources, environment and nodes of this task, for the Ray that it starts;
            filled by the backend, empty elsewhere.
        config: path or URI of the configuration, or its YAML.
        root: where the store and the records of runs are.
        run: name of this run.
        model: URI of the full model.
        scores: URI of the scores.
        step: name of this step in the records and the views.
        sets: keys to set in the configuration, `a.b=v`.
    """
    from rayrun.kfp_outputs import fill
    from rayrun.step import run_step

    done = run_step(
        "layer-select",
        "select",
        config,
        store=f"{root}/store",
        sets=[*sets, f"inputs.model={model}", f"inputs.scores={scores}"],
        step=step,
        run=f"{root}/runs/{run}",
        task_config=task_config,
    )
    fill(done, plan, metrics=metrics, report=report, checkpoint=model)
    return (done.uri,)
