"""`run --serve`: a Ray in this process serves what the pipeline deploys, and is asked.

Where the gate blocks a new model, the live one is served as it stands.
"""

import contextlib
import json
import threading
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from pipelines import APPLICATIONS, Application
from pipelines.asking import WHAT, ask
from pipelines.compiled import PipelineError
from pipelines.deploying import put_up
from pipelines.run import DONE, LOG, Ended, explain, new_folder, run_and_report, tell


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
        PipelineError: `serve_address` is given too, or the pipeline deploys nothing.
        ConfigError: the instance does not start (the port is taken).
    """
    if name not in APPLICATIONS:
        raise PipelineError(
            f"--serve asks what a pipeline deploys, and {name} deploys nothing; leave it out, or "
            f"run one of {', '.join(APPLICATIONS)}"
        )
    if arguments.get("serve_address"):
        raise PipelineError(
            f"--serve starts an instance of its own; leave out serve_address, found "
            f"{arguments['serve_address']!r}"
        )
    applications = APPLICATIONS[name]
    with _instance([_options(each, arguments) for each in applications]) as address:
        folder = new_folder(arguments["root"], name)
        ended = run_and_report(name, text, arguments | {"serve_address": address}, folder, steps)
        if ended.code != 0:
            return explain(ended, again)
        answers: list[dict[str, Any]] = []
        urls: list[str] = []
        for each in applications:
            url, bundle = _served(each, arguments, address, ended)
            urls.append(url)
            answers += ask(each, url, bundle)
        _report(ended.records, name, steps, answers)
        for answer in answers:
            print(
                f"{answer['user']}: {answer['candidates']} {WHAT[answer['program']]} in "
                f"{answer['milliseconds']:.1f} ms",
                flush=True,
            )
        tell(name, ended)
        for url in urls:
            print(f"READY {url}", flush=True)
        if not stop:
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
            print("\nstopped", flush=True)
    return DONE


# ---------------------------------------------------------------------------------------------


def _served(
    each: Application, arguments: Mapping[str, Any], address: str, ended: Ended
) -> tuple[str, str]:
    """Where an application answers, and the bundle it serves."""
    if ended.steps[each.deploy].state == "done":
        place = ended.steps[each.deploy].uri
        return str(_result(place)["details"]["url"]), ended.steps[each.export].uri
    bundle = _live(each, arguments)
    print(f"the gate blocked the new model; serving the live one, {bundle}", flush=True)
    return _deploy_live(each, arguments, address, bundle, ended), bundle


def _options(each: Application, arguments: Mapping[str, Any]) -> Any:
    """How an application is served: what both products share of that."""
    from rayrun.config import validate
    from rayrun.ray.serve_options import ServeOptions

    where, asked = _serve_section(each, arguments)
    known = {key: asked[key] for key in ServeOptions.model_fields if key in asked}
    return validate(ServeOptions, known, where=f"{where}, serve")


def _serve_section(each: Application, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """`serve:` of an application's configuration, and what to call that configuration."""
    from rayrun import storage
    from rayrun.config import apply_override, parse_yaml

    source: str = arguments[each.config]
    inline = "\n" in source.strip()
    content = source if inline else storage.read_bytes(source).decode("utf-8")
    where = each.config if inline else source
    raw = parse_yaml(content, where=where)
    for override in arguments.get(each.sets, []):
        raw = apply_override(raw, override)
    return where, raw.get("serve") or {}


def _live(each: Application, arguments: Mapping[str, Any]) -> str:
    """Where the live bundle stands; there is one, for the gate compared with it."""
    return str(arguments.get(each.live) or _serve_section(each, arguments)[1]["live"])


def _deploy_live(
    each: Application, arguments: Mapping[str, Any], address: str, bundle: str, ended: Ended
) -> str:
    """Put the live bundle on the instance; its URL."""
    sets = [
        *arguments.get(each.sets, []),
        f"inputs.bundle={bundle}",
        "serve.live=''",  # it stands there already
    ]
    if each.route_prefix:
        sets.append(f"serve.route_prefix={each.route_prefix}")
    try:
        return put_up(
            each.program,
            arguments[each.config],
            name=each.name,
            out=str(ended.folder / f"live_{each.name}"),
            sets=sets,
            address=address,
            log=ended.folder / LOG,
        )
    except PipelineError as error:
        raise PipelineError(
            f"the live bundle {bundle} cannot be served: {error}\nroll back to a bundle that can, "
            f"or give {each.live}=… another place"
        ) from None


@contextlib.contextmanager
def _instance(options: Sequence[Any]) -> Generator[str]:
    """The GCS address of a Ray of our own, whose CPUs are counted apart from those of the steps.

    It listens where the first of the applications says.
    """
    import ray

    from rayrun.ray.compute import LocalCompute
    from rayrun.ray.serve import serving
    from rayrun.ray.session import available_cpus

    # A replacement starts beside what it replaces.
    needed = sum(2 * each.replicas * each.cpus_per_replica for each in options)
    compute = LocalCompute(
        num_cpus=max(available_cpus(), int(needed + 0.999)), object_store_bytes=200_000_000
    )
    with serving(compute, options[0]):
        yield str(ray.get_runtime_context().gcs_address)


def _result(uri: str) -> dict[str, Any]:
    from rayrun import storage

    return json.loads(storage.read_bytes(storage.join(uri, "result.json")))


def _report(
    records: str, name: str, steps: Sequence[str], answers: Sequence[Mapping[str, Any]]
) -> None:
    from rayrun import storage
    from rayrun.run_report import STATUS_FILE, write_report

    status = json.loads(storage.read_bytes(storage.join(records, STATUS_FILE)))
    write_report(records, name, steps, backend_state=status["backend_state"], answers=answers)
