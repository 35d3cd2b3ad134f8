"""`layer-select deploy`: a recommender goes live on a Ray Serve instance."""

# pyright: reportInvalidTypeForm=false
# KFP reads the named outputs from the annotation itself.
from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def layers_deploy(
    deployment: Output[Artifact],
    config: str,
    root: str,
    run: str,
    bundle: str,
    address: str,
    live: str = "",
    route_prefix: str = "",
    step: str = "deploy",
    sets: list[str] = [],  # noqa: B006 - the default in the compiled component
) -> NamedTuple("Outputs", [("url", str)]):
    """Put a bundle on a Serve instance; done when it answers with the bundle's digest.

    It is an act, not a thing that is made: never cached.

    Args:
        deployment: what was deployed and where it answers.
        config: path or URI of the configuration, or its YAML.
        root: where the store and the records of runs are.
        run: name of this run.
        bundle: URI of the bundle.
        address: GCS address of the Ray cluster that serves, HOST:PORT.
        live: where to record the bundle as the live one; empty: what `serve.live` of the
            configuration says.
        route_prefix: where it answers below the instance's root; empty: what `serve.route_prefix`
            of the configuration says.
        step: name of this step in the records and the views; the folder of its record too.
        sets: keys to set in the configuration, `a.b=v`.
    """
    from rayrun.kfp_outputs import fill
    from rayrun.step import run_step

    places = [
        f"inputs.bundle={bundle}",
        f"compute={{type: attached, address: '{address}'}}",
    ]
    if route_prefix:
        places.append(f"serve.route_prefix={route_prefix}")
    if live:
        places.append(f"serve.live={live}")
    done = run_step(
        "layer-select",
        "deploy",
        config,
        out=f"{root}/runs/{run}/{step}",
        sets=[*sets, *places],
        step=step,
        run=f"{root}/runs/{run}",
    )
    assert done.result is not None
    fill(done, deployment)
    return (str(done.result.details["url"]),)
