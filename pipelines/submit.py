"""`python -m pipelines submit | schedule`: run a pipeline on a KFP backend, once or repeatedly."""

# pyright: reportArgumentType=false
# KFP's annotations do not say that an argument may be None.
import argparse
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DONE, INTERRUPTED = 0, 130

CONFIGURATIONS = ("config", "llm_config")
"""Arguments that may be the text of a configuration: a file here is sent as its text."""

PLACES = ("root", "serve_address")
"""Arguments that say where a run keeps and puts things: no part of a cache key."""

ACT = re.compile(r"(finish|-deploy|-gate)(-\d+)?$")
"""Tasks that look at what is outside of the run (what serves, what is live): never cached."""

CRON_FIELDS = 6


def add_submit(commands: Any) -> None:
    """The command `submit` and its options."""
    parser = commands.add_parser("submit", help="run one on a KFP backend", allow_abbrev=False)
    _common(parser)
    parser.add_argument("--run-name", default="", help="name of the run (default NAME and time)")
    parser.add_argument(
        "--cache-key",
        default="",
        metavar="KEY",
        help="let the backend skip what an earlier run with this KEY and these arguments made",
    )
    parser.add_argument(
        "--watch", action="store_true", help="follow the run to its end; exit code 0 or 1"
    )


def add_schedule(commands: Any) -> None:
    """The command `schedule` and its options."""
    parser = commands.add_parser(
        "schedule", help="run one on a KFP backend repeatedly", allow_abbrev=False
    )
    _common(parser)
    when = parser.add_mutually_exclusive_group(required=True)
    when.add_argument(
        "--cron", default="", metavar="EXPR", help="six fields, seconds first: '0 0 4 * * *'"
    )
    when.add_argument("--interval", type=int, metavar="S", help="seconds between two starts")
    parser.add_argument("--schedule-name", default="", help="its name (default NAME)")
    parser.add_argument(
        "--max-concurrency", type=int, default=1, metavar="N", help="runs at once (default 1)"
    )
    parser.add_argument(
        "--catch-up", action="store_true", help="after a pause, make up for the starts missed"
    )


def submit(parsed: argparse.Namespace, given: Sequence[str]) -> int:
    """Submit a run and print its page; with `--watch`, follow it.

    Raises:
        PipelineError: an argument is wrong (nothing has been sent then), or the backend says no.
    """
    from pipelines.backend import Address, connect, one_line, quietly
    from pipelines.compiled import PipelineError
    from pipelines.watch import run_page, watch

    spec, arguments = _checked(parsed, given)
    names = _names(spec)
    if parsed.cache_key:
        _cache(spec, f"{parsed.cache_key}-{_digest(parsed.name, arguments)}")
    address = Address(parsed.host, parsed.namespace, parsed.token_env, parsed.ca_file)
    client = connect(address)
    with _package(spec) as package, one_line(address), quietly():
        run = client.create_run_from_pipeline_package(
            package,
            arguments=arguments,
            run_name=parsed.run_name or f"{parsed.name} {_now()}",
            experiment_name=parsed.experiment or None,
            namespace=parsed.namespace or None,
            pipeline_root=parsed.pipeline_root or None,
            service_account=parsed.service_account or None,
        )
    if not run.run_id:
        raise PipelineError(
            f"what answers at {address.url} took the run and gave it no name, so it is no KFP API "
            "of version 2; check --host"
        )
    print(f"run: {run_page(address, run.run_id)}", flush=True)
    if not parsed.watch:
        return DONE
    try:
        return watch(client, address, run.run_id, names)
    except KeyboardInterrupt:
        print("\nno longer watched; the run goes on", file=sys.stderr)
        return INTERRUPTED


def schedule(parsed: argparse.Namespace, given: Sequence[str]) -> int:
    """Make a recurring run and print its page.

    Raises:
        PipelineError: an argument is wrong (nothing has been sent then), or the backend says no.
    """
    from pipelines.backend import Address, connect, one_line, quietly

    _check_times(parsed)
    spec, arguments = _checked(parsed, given)
    address = Address(parsed.host, parsed.namespace, parsed.token_env, parsed.ca_file)
    client = connect(address)
    with _package(spec) as package, one_line(address), quietly():
        experiment = client.create_experiment(
            parsed.experiment or _default_experiment(), namespace=parsed.namespace or None
        )
        made = client.create_recurring_run(
            experiment.experiment_id,
            parsed.schedule_name or parsed.name,
            cron_expression=parsed.cron or None,
            interval_second=parsed.interval,
            max_concurrency=parsed.max_concurrency,
            no_catchup=not parsed.catch_up,
            params=arguments,
            pipeline_package_path=package,
            pipeline_root=parsed.pipeline_root or None,
            service_account=parsed.service_account or None,
        )
    print(f"schedule: {address.page}/recurringrun/details/{made.recurring_run_id}", flush=True)
    return DONE


# ---------------------------------------------------------------------------------------------


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the pipeline")
    parser.add_argument("arguments", nargs="*", metavar="KEY=VALUE", help="its arguments")
    parser.add_argument(
        "--set",
        dest="sets",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set one key of the configuration (train.epochs=2); repeatable",
    )
    for name, metavar, text in (
        ("host", "URL", "the KFP API (default $KF_PIPELINES_ENDPOINT)"),
        ("namespace", "NAME", "the profile, where the backend has several users"),
        (
            "token-env",
            "VAR",
            "environment variable with the token (default: a mounted one, if any)",
        ),
        ("ca-file", "FILE", "certificates to trust"),
        ("experiment", "NAME", "group of runs, made if it is not there (default: KFP's)"),
        ("pipeline-root", "URI", "where KFP keeps its own files (default: the backend's)"),
        ("service-account", "NAME", "of the pods (default: the backend's)"),
    ):
        parser.add_argument(f"--{name}", default="", metavar=metavar, help=text)


def _checked(
    parsed: argparse.Namespace, given: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The specification, and the arguments as the backend shall have them."""
    import yaml

    from pipelines.arguments import parse
    from pipelines.compiled import PipelineError, compiled, inputs_of

    spec = yaml.safe_load(compiled(parsed.name))
    fixed: dict[str, object] = {"sets": list(parsed.sets)} if parsed.sets else {}
    arguments = parse(parsed.name, inputs_of(spec), given, **fixed)
    root = str(arguments.get("root", ""))
    if root and "://" not in root and not root.startswith("/"):
        raise PipelineError(
            "root must be a URI (s3://bucket/key) that every pod reaches, or an absolute path on a "
            f"volume that all of them mount; found {root!r}"
        )
    for name in CONFIGURATIONS:
        text = str(arguments.get(name, ""))
        if text and "\n" not in text and "://" not in text and Path(text).is_file():
            arguments[name] = Path(text).read_text(encoding="utf-8")
            print(f"{name}: the text of {text} is sent", flush=True)
    return spec, arguments


def _check_times(parsed: argparse.Namespace) -> None:
    from pipelines.compiled import PipelineError

    fields = parsed.cron.split()
    if parsed.interval is None and len(fields) != CRON_FIELDS and not parsed.cron.startswith("@"):
        raise PipelineError(
            f"--cron must have six fields (second minute hour day month weekday) or be @daily and "
            f"the like, found {parsed.cron!r} with {len(fields)}"
        )
    if parsed.interval is not None and parsed.interval < 1:
        raise PipelineError(f"--interval must be at least 1 second, found {parsed.interval}")
    if not 1 <= parsed.max_concurrency <= 10:
        raise PipelineError(
            f"--max-concurrency must be 1 to 10, as KFP has it, found {parsed.max_concurrency}"
        )


def _default_experiment() -> str:
    from kfp.client.client import KF_PIPELINES_DEFAULT_EXPERIMENT_NAME

    return os.environ.get(KF_PIPELINES_DEFAULT_EXPERIMENT_NAME, "") or "Default"


def _names(spec: Mapping[str, Any]) -> dict[str, str]:
    from pipelines.compiled import tasks_of

    found: dict[str, str] = {}
    for name, task in tasks_of(spec).items():
        found[name] = found[task["taskInfo"]["name"]] = task["taskInfo"]["name"]
    return found


def _cache(spec: dict[str, Any], key: str) -> None:
    """Turn the backend's cache on, one key per task.

    KFP's own `cache_key` sets one and the same key for the tasks of the outermost DAG only, which
    here are the exit handler and the group of all others. And a key stands for the arguments of a
    task, so it holds those of the run.
    """
    from pipelines.compiled import tasks_of

    for name, task in tasks_of(spec).items():
        if not ACT.search(name):
            task["cachingOptions"] = {"enableCache": True, "cacheKey": f"{key}-{name}"}


def _digest(pipeline: str, arguments: Mapping[str, Any]) -> str:
    kept = {name: value for name, value in arguments.items() if name not in PLACES}
    text = json.dumps([pipeline, kept], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def _package(spec: Mapping[str, Any]) -> Generator[str]:
    import yaml

    with tempfile.TemporaryDirectory(prefix="submit-") as folder:
        place = Path(folder) / "pipeline.yaml"
        place.write_text(yaml.safe_dump(dict(spec), sort_keys=True), encoding="utf-8")
        yield str(place)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
