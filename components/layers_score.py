"""`layer-select score`: what each layer contributes to the task."""

# pyright: reportInvalidTypeForm=false
# KFP reads the named outputs from the annotation itself.
from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Artifact, Metrics, Output

from components.image import IMAGE
from components.passthroughs import PASSTHROUGHS


@dsl.component(base_image=IMAGE, install_kfp_package=False, task_config_passthroughs=PASSTHROUGHS)
def layers_score(
    scores: Output[Artifact],
    metrics: Output[Metrics],
    report: Output[HTML],
    task_config: dsl.TaskConfig,
    config: str,
    root: str,
    run: str,
    model: str,
    step: str = "score",
    sets: list[str] = [],  # noqa: B006 - the default in the compiled component
) -> NamedTuple("Outputs", [("uri", str)]):
    """Measure what each layer contributes, by every method of the configuration.

    Args:
        scores: the scores, where they stand in the store.
        metrics: the loss of the whole model.
        report: heat map, curves and costs of the methods.
        task_config: resources, environment and nodes of this task, for the Ray that it starts;
            filled by the backend, empty elsewhere.
        config: path or URI of the configuration, or its YAML.
        root: where the store and the records of runs are.
        run: name of this run.
        model: URI of the full model.
        step: name of this step in the records and the views.
        sets: keys to set in the configuration, `a.b=v`.
    """
    from rayrun.kfp_outputs import fill
    from rayrun.step import run_step

    done = run_step(
        "layer-select",
        "score",
        config,
        store=f"{root}/store",
        sets=[*sets, f"inputs.model={model}"],
        step=step,
        run=f"{root}/runs/{run}",
        task_config=task_config,
    )
    fill(done, scores, metrics=metrics, report=report, checkpoint=model)
    return (done.uri,)
