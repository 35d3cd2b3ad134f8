"""`python -m pipelines serve FILE`: the applications of one file on one Ray Serve instance.

Each is put there by its program's verb `deploy`, as by a pipeline, so that replacing one of them
later is the same act and leaves the others alone.
"""

import contextlib
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.compiled import PipelineError
from pipelines.deploying import put_up

DONE = 0


def serve(file: str, names: Sequence[str], sets: Sequence[str], out: str) -> int:
    """Put applications on an instance, print `READY <url>` for each, and serve until Ctrl-C.

    Where the file attaches to a Ray that is there already, what was put up stays, and the command
    ends when all answer.

    Args:
        file: path or URI of the configuration (`rayrun.ray.applications`).
        names: which of its applications; none: all.
        sets: keys to set in the file.
        out: directory of the records; empty: `runs/<name of the file>/serve`.

    Returns:
        The exit code.

    Raises:
        ConfigError: the file, a bundle, the port; nothing is running then.
        PipelineError: an application it does not have, or one that does not go live.
        KeyboardInterrupt: Ctrl-C before all answer.
    """
    from rayrun.ray.applications import check_bundles, load_applications, options_of, room_for
    from rayrun.ray.compute import AttachedCompute, LocalCompute
    from rayrun.ray.serve import serving, wait_while_serving
    from rayrun.ray.serve_options import ServeOptions

    config = load_applications(file, sets)
    if strangers := [name for name in names if name not in config.applications]:
        raise PipelineError(
            f"{file} has the applications {', '.join(config.applications)}, found "
            f"{', '.join(strangers)}"
        )
    chosen = list(names) or list(config.applications)
    check_bundles(config, chosen)
    options = [options_of(config, name) for name in chosen]
    local = config.compute
    compute = room_for(local, options) if isinstance(local, LocalCompute) else local
    records = Path(out or f"runs/{config.name}/serve")
    try:
        records.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PipelineError(
            f"--out {records} cannot be written ({error.strerror}); choose another directory"
        ) from None
    if isinstance(compute, AttachedCompute):
        for name in chosen:
            url = _put_up(config, name, compute.address, records)
            print(f"READY {url}", flush=True)
        return DONE
    listening = ServeOptions(**config.serve.model_dump())
    with serving(compute, listening):
        address = _address()
        urls = [_put_up(config, name, address, records) for name in chosen]
        for url in urls:
            print(f"READY {url}", flush=True)
        print(f"to replace one: {_again(file, chosen[0], address)}", flush=True)
        with contextlib.suppress(KeyboardInterrupt), warnings.catch_warnings():
            warnings.showwarning = _tell
            wait_while_serving(*chosen)
        print("\ntold to stop; answering what was asked before", flush=True)
    return DONE


# ---------------------------------------------------------------------------------------------


def _put_up(config: Any, name: str, address: str, records: Path) -> str:
    served = config.applications[name]
    return put_up(
        served.program,
        served.bundle,
        name=name,
        out=str(records / name),
        sets=config.sets_of(name),
        address=address,
        log=records / f"{name}.log",
    )


def _address() -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)


def _tell(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


def _again(file: str, name: str, address: str) -> str:
    # Ray protects a local instance by a token, which lies in the user's home; who attaches says so.
    mode = "RAY_AUTH_MODE=token " if os.environ.get("RAY_AUTH_MODE") == "token" else ""
    return (
        f"{mode}python -m pipelines serve {file} {name} --set applications.{name}.bundle=DIR "
        f"--set \"compute={{type: attached, address: '{address}'}}\""
    )
