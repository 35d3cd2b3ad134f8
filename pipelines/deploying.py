"""A verb `deploy` as a step outside of KFP: what it prints goes to a log, its URL comes back."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.compiled import PipelineError

INTERRUPTED, BAD_INPUT = 130, 2
FAILED = " failed: "


def put_up(
    program: str, config: str, *, name: str, out: str, sets: Sequence[str], address: str, log: Path
) -> str:
    """Run `PROGRAM deploy CONFIG` against an instance, as the step of a pipeline does.

    Args:
        program: `infnet` or `layer-select`.
        config: path or URI of the configuration or of a bundle, or YAML.
        name: of the application, for the messages.
        out: where the record of the deployment goes.
        sets: keys to set in the configuration.
        address: GCS address of the Ray cluster that serves.
        log: file that gets what the verb prints.

    Returns:
        The URL of the application, which answers.

    Raises:
        PipelineError: the verb refuses (the bundle, the prefix, the address); with its reason.
        KeyboardInterrupt: it was told to stop.
        SystemExit: a fault of the verb, after a line on stderr.
    """
    from rayrun.step import run_step

    places = [*sets, f"compute={{type: attached, address: '{address}'}}"]
    try:
        with (
            log.open("a", encoding="utf-8") as stream,
            contextlib.redirect_stdout(stream),
            contextlib.redirect_stderr(stream),
        ):
            done = run_step(program, "deploy", config, out=out, sets=places, step=name)
    except SystemExit as failed:
        if failed.code == INTERRUPTED:
            raise KeyboardInterrupt from None
        why = f"the application {name} does not go live: {_reason(log, name)}\nits log: {log}"
        if failed.code == BAD_INPUT:
            raise PipelineError(why) from None
        print(f"error: {why}", file=sys.stderr)
        raise
    assert done.result is not None
    return str(done.result.details["url"])


def _reason(log: Path, name: str) -> str:
    """What the step said last."""
    text = log.read_text(encoding="utf-8", errors="replace")
    said = text.rpartition(f"step {name}{FAILED}")[2].strip().splitlines()
    return said[0].removeprefix("bad input (exit code 2): ") if said else "it said nothing"
