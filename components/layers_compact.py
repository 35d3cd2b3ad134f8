"""`layer-select compact`: the model without the other layers."""

# pyright: reportInvalidTypeForm=false
# KFP reads the named outputs from the annotation itself.
from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Metrics, Model, Output

from components.image import IMAGE
from components.passthroughs import PASSTHROUGHS


@dsl.component(base_image=IMAGE, install_kfp_package=False, task_config_passthroughs=PASSTHROUGHS)
def layers_compact(
    student: Output[Model],
    metrics: Output[Metrics],
    report: Output[HTML],
    task_config: dsl.TaskConfig,
    config: str,
    root: str,
    run: str,
    model: str,
    plan: str,
    step: str = "compact",
    sets: list[str] = [],  # noqa: B006 - the default in the compiled component
) -> NamedTuple("Outputs", [("uri", str)]):
    """Write the model without the other layers, its gaps repaired.

    Args:
        student: the smaller model, where it stands in the store.
        metrics: of the full, the cut and the repaired model.
        report: sizes, and what each repair brought.
        task_config: resources, environment and nodes of this task, for the Ray that it starts;
            filled by the backend, empty elsewhere.
        config: path or URI of the configuration, or its YAML.
        root: where the store and the records of runs are.
        run: name of this run.
        model: URI of the full model.
        plan: URI of the plan.
        step: name of this step in the records and the views.
        sets: keys to set in the configuration, `a.b=v`.
    """
    from rayrun.kfp_outputs import fill
    from rayrun.step import run_step

    done = run_step(
        "layer-select",
        "compact",
        config,
        store=f"{root}/store",
        sets=[*sets, f"inputs.model={model}", f"inputs.plan={plan}"],
        step=step,
        run=f"{root}/runs/{run}",
        task_config=task_config,
    )
    fill(done, student, metrics=metrics, report=report, checkpoint=done.uri)
    return (done.uri,)
