"""`infnet export`: checkpoint → serve bundle."""

# pyright: reportInvalidTypeForm=false
# KFP reads the named outputs from the annotation itself.
from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Metrics, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def infnet_export(
    bundle: Output[Model],
    metrics: Output[Metrics],
    report: Output[HTML],
    config: str,
    root: str,
    run: str,
    checkpoint: str,
    step: str = "export",
    sets: list[str] = [],  # noqa: B006 - the default in the compiled component
) -> NamedTuple("Outputs", [("uri", str)]):
    """Export the trained model as a bundle that a server scores with.

    Args:
        bundle: the serve bundle, where it stands in the store.
        metrics: numbers of `result.json`.
        report: what is in the bundle, and how near it is to the trained model.
        config: path or URI of the configuration, or its YAML.
        root: where the store and the records of runs are.
        run: name of this run.
        checkpoint: URI of the run directory of the training.
        step: name of this step in the records and the views.
        sets: keys to set in the configuration, `a.b=v`.
    """
    from rayrun.kfp_outputs import fill
    from rayrun.step import run_step

    done = run_step(
        "infnet",
        "export",
        config,
        store=f"{root}/store",
        sets=[*sets, f"inputs.checkpoint={checkpoint}"],
        step=step,
        run=f"{root}/runs/{run}",
    )
    fill(done, bundle, metrics=metrics, report=report, checkpoint=f"{checkpoint}/checkpoint")
    return (done.uri,)
