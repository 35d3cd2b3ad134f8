"""`layer-select score`: what each layer contributes to the task."""

# pyright: reportInvalidTypeForm=false
# KFP reads the named outputs from the annotation itself.
from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Artifact, Metrics, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def layers_score(
    scores: Output[Artifact],
    metrics: Output[Metrics],
    report: Output[HTML],
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
    )
    fill(done, scores, metrics=metrics, report=report)
    return (done.uri,)
