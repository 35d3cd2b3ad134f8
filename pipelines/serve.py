"""`run --serve`: a Ray in this process serves what the pipeline deploys, and is asked.

Where the gate blocks the new model, the live one is served as it stands.
"""

import contextlib
import json
import threading
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines import PROGRAMS
from pipelines.asking import WHAT, ask
from pipelines.compiled import PipelineError
from pipelines.run import DONE, INTERRUPTED, LOG, Ended, explain, new_folder, run_and_report, tell


def run_and_serve(
    name: str,
    text: str,
    arguments: dict[str, Any],
    steps: Sequence[str],
    again: str,
    *,
    stop: bool,
) -> int:
    """Run a pipeline with a serving instance of our own, ask what it deployed, and serve on.

    Args:
        name: of the pipeline.
        text: its specification, YAML.
        arguments: checked arguments; `serve_address` is filled in here.
        steps: names of its steps, in their order.
        again: the command line that goes on after an interruption.
        stop: end after the first answers.

    Raises:
        PipelineError: `serve_address` is given too, or the pipeline has none.
        ConfigError: the instance does not start (the port is taken).
    """
    if arguments.get("serve_address"):
        raise PipelineError(
            f"--serve starts an instance of its own; leave out serve_address, found "
            f"{arguments['serve_address']!r}"
        )
    with _instance(_options(arguments)) as address:
        folder = new_folder(Path(arguments["root"]), name)
        ended = run_and_report(name, text, arguments | {"serve_address": address}, folder, steps)
        if ended.code != 0:
            return explain(ended, again)
        if ended.steps["deploy"].state == "done":
            bundle, place = ended.steps["export"].uri, ended.steps["deploy"].uri
        else:
            bundle = _live(arguments)
            print(f"the gate blocked the new model; serving the live one, {bundle}", flush=True)
            place = _deploy_live(name, arguments, address, bundle, ended)
        url = _result(place)["details"]["url"]
        answers = ask(PROGRAMS[name], url, bundle)
        _report(folder, name, steps, answers)
        for answer in answers:
            print(
                f"{answer['user']}: {answer['candidates']} {WHAT[PROGRAMS[name]]} in "
                f"{answer['milliseconds']:.1f} ms",
                flush=True,
            )
        tell(name, ended)
        print(f"READY {url}", flush=True)
        if not stop:
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
            print("\nstopped", flush=True)
    return DONE


# ---------------------------------------------------------------------------------------------


def _options(arguments: Mapping[str, Any]) -> Any:
    """The options of the serving instance."""
    from rayrun.config import validate
    from rayrun.ray.serve_options import ServeOptions

    where, asked = _serve_section(arguments)
    known = {key: asked[key] for key in ServeOptions.model_fields if key in asked}
    return validate(ServeOptions, known, where=f"{where}, serve")


def _serve_section(arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """`serve:` of the pipeline's configuration, and what to call that configuration."""
    from rayrun import storage
    from rayrun.config import apply_override, parse_yaml

    source: str = arguments["config"]
    inline = "\n" in source.strip()
    content = source if inline else storage.read_bytes(source).decode("utf-8")
    where = "config" if inline else source
    raw = parse_yaml(content, where=where)
    for override in arguments.get("sets", []):
        raw = apply_override(raw, override)
    return where, raw.get("serve") or {}


def _live(arguments: Mapping[str, Any]) -> str:
    """Where the live bundle stands; there is one, for the gate compared with it."""
    return str(arguments.get("live") or _serve_section(arguments)[1]["live"])


def _deploy_live(
    name: str, arguments: Mapping[str, Any], address: str, bundle: str, ended: Ended
) -> str:
    """Put the live bundle on the instance; returns the directory of the deployment's result."""
    from rayrun.step import run_step

    places = [
        f"inputs.bundle={bundle}",
        f"compute={{type: attached, address: '{address}'}}",
        "serve.live=''",  # it stands there already
    ]
    try:
        with (
            (ended.folder / LOG).open("a", encoding="utf-8") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            done = run_step(
                PROGRAMS[name],
                "deploy",
                arguments["config"],
                out=str(ended.folder / "live"),
                sets=[*arguments.get("sets", []), *places],
            )
    except SystemExit as failed:
        if failed.code == INTERRUPTED:
            raise KeyboardInterrupt from None
        raise PipelineError(
            f"the live bundle {bundle} cannot be served; why stands at the end of "
            f"{ended.folder / LOG}. Roll back to a bundle that can, or give live=… another place"
        ) from None
    return done.uri


@contextlib.contextmanager
def _instance(options: Any) -> Generator[str]:
    """The GCS address of a Ray of our own, whose CPUs are counted apart from those of the steps."""
    import ray

    from rayrun.ray.compute import LocalCompute
    from rayrun.ray.serve import serving
    from rayrun.ray.session import available_cpus

    # A replacement starts beside what it replaces.
    needed = 2 * options.replicas * options.cpus_per_replica
    compute = LocalCompute(
        num_cpus=max(available_cpus(), int(needed + 0.999)), object_store_bytes=200_000_000
    )
    with serving(compute, options):
        yield str(ray.get_runtime_context().gcs_address)


def _result(uri: str) -> dict[str, Any]:
    from rayrun import storage

    return json.loads(storage.read_bytes(storage.join(uri, "result.json")))


def _report(
    folder: Path, name: str, steps: Sequence[str], answers: Sequence[Mapping[str, Any]]
) -> None:
    from rayrun.run_report import STATUS_FILE, write_report

    status = json.loads((folder / STATUS_FILE).read_text(encoding="utf-8"))
    write_report(folder, name, steps, backend_state=status["backend_state"], answers=answers)
