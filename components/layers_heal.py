"""`layer-select heal`: the smaller model learns again."""

# pyright: reportInvalidTypeForm=false
# KFP reads the named outputs from the annotation itself.
from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Metrics, Model, Output

from components.image import IMAGE
from components.passthroughs import PASSTHROUGHS


@dsl.component(base_image=IMAGE, install_kfp_package=False, task_config_passthroughs=PASSTHROUGHS)
def layers_heal(
    healed: Output[Model],
    metrics: Output[Metrics],
    report: Output[HTML],
    task_config: dsl.TaskConfig,
    config: str,
    root: str,
    run: str,
    model: str,
    student: str,
    step: str = "heal",
    sets: list[str] = [],  # noqa: B006 - the default in the compiled component
) -> NamedTuple("Outputs", [("uri", str)]):
    """Heal the smaller model on the task and on what the full one says.

    Args:
        healed: the healed model, where it stands in the store.
        metrics: before and after healing, the full model beside them.
        report: losses, costs, and what was retained.
        task_config: resources, environment and nodes of this task, for the Ray that it starts;
            filled by the backend, empty elsewhere.
        config: path or URI of the configuration, or its YAML.
        root: where the store and the records of runs are.
        run: name of this run.
        model: URI of the full model.
        student: URI of the smaller model.
        step: name of this step in the records and the views.
        sets: keys to set in the configuration, `a.b=v`.
    """
    from rayrun.kfp_outputs import fill
    from rayrun.step import run_step

    done = run_step(
        "layer-select",
        "heal",
        config,
        store=f"{root}/store",
        sets=[*sets, f"inputs.model={model}", f"inputs.student={student}"],
        step=step,
        run=f"{root}/runs/{run}",
        task_config=task_config,
    )
    fill(done, healed, metrics=metrics, report=report, checkpoint=done.uri)
    return (done.uri,)
