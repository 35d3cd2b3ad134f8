"""`infnet gate`: may the new model replace the live one?"""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Metrics, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def infnet_gate(
    comparison: Output[Artifact],
    metrics: Output[Metrics],
    report: Output[HTML],
    config: str,
    root: str,
    run: str,
    evaluation: str,
    live: str = "",
    step: str = "gate",
    sets: list[str] = [],  # noqa: B006 - the default in the compiled component
) -> str:
    """Compare the new model with the live one on the same test rows.

    Args:
        comparison: the paired comparison, where it stands in the store.
        metrics: metrics of both models.
        report: the comparison and the decision.
        config: path or URI of the configuration, or its YAML.
        root: where the store and the records of runs are.
        run: name of this run.
        evaluation: URI of the evaluation of the new model.
        live: URI of the live bundle; empty: what `serve.live` of the configuration says.
        step: name of this step in the records and the views.
        sets: keys to set in the configuration, `a.b=v`.

    Returns:
        `pass` or `blocked`; as the unnamed output, for KFP's local runner sees no other in a
        condition.
    """
    from rayrun.kfp_outputs import fill
    from rayrun.step import run_step

    places = [f"inputs.evaluation={evaluation}"]
    if live:
        places.append(f"serve.live={live}")
    done = run_step(
        "infnet",
        "gate",
        config,
        store=f"{root}/store",
        sets=[*sets, *places],
        step=step,
        run=f"{root}/runs/{run}",
    )
    assert done.result is not None
    fill(done, comparison, metrics=metrics, report=report)
    return str(done.result.details["decision"])
