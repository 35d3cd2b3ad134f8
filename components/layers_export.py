"""`layer-select export`: the bundle that is served, and that other tools load."""

# pyright: reportInvalidTypeForm=false
# KFP reads the named outputs from the annotation itself.
from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Metrics, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def layers_export(
    bundle: Output[Model],
    metrics: Output[Metrics],
    report: Output[HTML],
    config: str,
    root: str,
    run: str,
    model: str,
    student: str,
    step: str = "export",
    sets: list[str] = [],  # noqa: B006 - the default in the compiled component
) -> NamedTuple("Outputs", [("uri", str)]):
    """Write the bundle: Hugging Face folder, GGUF file, item vectors, sample.

    Args:
        bundle: the bundle, where it stands in the store.
        metrics: of every form of the model on the test samples.
        report: what each form keeps.
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
        "export",
        config,
        store=f"{root}/store",
        sets=[*sets, f"inputs.model={model}", f"inputs.student={student}"],
        step=step,
        run=f"{root}/runs/{run}",
    )
    fill(done, bundle, metrics=metrics, report=report, checkpoint=student)
    return (done.uri,)
