"""The command line every verb shares: `PROG VERB CONFIG [--set a.b=v]… [--out DIR] [--dry-run]`.

Instead of `--out DIR`, a verb whose result follows from its inputs takes `--store URI`: a result
that stands there under the same key is used, anything else is made (`rayrun.store`).

A verb whose `compute` names a dashboard, or Kubernetes, runs there as a job, and is followed here
(`rayrun.ray.submit`, `rayrun.kube.launch`).

A product lists its verbs and calls `main`. A verb's work is an ordinary function `run(config, out,
**flags) -> Result`, named by an import path, so that `--help` imports neither torch nor Ray and a
notebook calls the same function.

Exit codes: 0 done; 2 bad input (one readable error); 1 a fault of ours; 130 interrupted, resumable.
"""

import argparse
import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from rayrun.arguments import BAD_INPUT, parser
from rayrun.config import Config, ConfigError, Json, apply_override, parse_yaml, validate
from rayrun.verb import Ended, Flag, Target, Verb, resolve

__all__ = ["Flag", "Target", "Verb", "load_config", "main", "resolve"]

DONE, FAULT, INTERRUPTED = 0, 1, 130

REPEAT_S = 5.0
"""A SIGTERM that comes again within this time means the same."""

INPUT_OF = {
    "dataset": "data",
    "run": "checkpoint",
    "checkpoint": "checkpoint",
    "model": "model",
    "scores": "scores",
    "plan": "plan",
    "student": "student",
    "bundle": "bundle",
    "evaluation": "evaluation",
}
"""Which `inputs.<name>` an earlier output fills, by the second part of its manifest's kind."""


def main(prog: str, verbs: Sequence[Verb], argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code; every error ends in a readable line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        parsed = parser(prog, verbs).parse_args(arguments)
    except SystemExit as end:  # argparse: --help is 0, a wrong argument 2
        return end.code if isinstance(end.code, int) else BAD_INPUT
    verb = next(v for v in verbs if v.name == parsed.verb)
    record = _Record(parsed.record, verb.name)
    before = _sigterm_interrupts()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            record.begin()
            _run(prog, verb, parsed, record)
        code = DONE
    except KeyboardInterrupt:
        _interrupted(prog, arguments)
        code = INTERRUPTED
    except Ended as ended:
        code = ended.exit_code
    except BrokenPipeError:  # the reader of our output (`| head`) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = DONE
    except Exception as error:
        code = _failed(error)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    record.end(code)
    return code


def load_config(cls: type[Config], source: str, sets: Iterable[str] = ()) -> Config:
    """The configuration at `source`: a YAML file, or the output directory of an earlier verb.

    From a directory, its `config.yaml` is read and the input it can serve as is set to it.

    Raises:
        ConfigError: nothing there, no output directory, or invalid content.
    """
    from rayrun import manifest, storage
    from rayrun.ray.compute import fitting

    place, inputs = source, dict[str, str]()
    if not source.endswith((".yaml", ".yml")):
        if not storage.exists(source):
            raise ConfigError(
                f"CONFIG must be a YAML file or the --out directory of an earlier verb; "
                f"there is nothing at {source}"
            )
        directory = storage.local_path(source)
        if directory is None or directory.is_dir():
            raw = manifest.read_raw(source)
            place = storage.join(source, manifest.CONFIG_FILE)
            if name := INPUT_OF.get(str(raw.get("kind")).partition(".")[2]):
                inputs[name] = source
    text = storage.read_bytes(place)
    try:
        content = parse_yaml(text.decode("utf-8"), where=place)
    except UnicodeDecodeError:
        raise ConfigError(f"{place} is not UTF-8 text; a YAML file is needed") from None
    if isinstance(content, dict):
        loaded = cast(Json, content)
        if inputs:
            loaded["inputs"] = {**cast(Json, loaded.get("inputs") or {}), **inputs}
        for override in sets:
            loaded = apply_override(loaded, override)
        content = fitting(loaded)
    return validate(cls, content, where=place)


# ---------------------------------------------------------------------------------------------


class _Record:
    """What one call did, as JSON for whoever called: written at the start, so that a place that
    cannot be written is told before hours of work, and at the end.
    """

    def __init__(self, file: str | None, verb: str) -> None:
        self.file = file
        self.started = time.monotonic()
        self.begun = False
        self.content: Json = {"verb": verb, "uri": "", "key": "", "cached": False, "digest": ""}

    def begin(self) -> None:
        self._write(None)
        self.begun = True

    def end(self, exit_code: int) -> None:
        if self.begun:
            self._write(exit_code)

    def _write(self, exit_code: int | None) -> None:
        if self.file is None:
            return
        from rayrun import storage

        seconds = round(time.monotonic() - self.started, 3)
        content = self.content | {"seconds": seconds, "exit_code": exit_code}
        storage.write_bytes(self.file, (json.dumps(content, indent=1) + "\n").encode())


def _run(prog: str, verb: Verb, parsed: argparse.Namespace, record: _Record) -> None:
    flags: Mapping[str, Any] = {flag.name: getattr(parsed, flag.name) for flag in verb.flags}
    if verb.config is None:
        before: tuple[Any, ...] = ()
        out = parsed.out or verb.out or "."
        described = ""
    else:
        config = load_config(resolve(verb.config), parsed.config, parsed.sets)
        if _goes(verb, config):
            _run_as_job(prog, verb, config, flags, parsed, record)
            return
        if verb.store and parsed.store:
            _run_stored(prog, verb, config, flags, parsed, record)
            return
        before = (config,)
        out = _out(verb, config, parsed)
        described = f"# {config.digest()}\n{config.to_yaml()}"
    if parsed.dry_run:
        plan = resolve(verb.plan)(*before, out, **flags) if verb.plan is not None else described
        print(f"{plan}\n\n{verb.name} would write to {out}; nothing was done (--dry-run)")
        return
    from rayrun import storage

    record.content["uri"] = storage.absolute(out)
    if verb.config is None:
        result = resolve(verb.run)(out, **flags)
    else:
        from rayrun import storage

        with storage.claim(out):
            result = resolve(verb.run)(*before, out, **flags)
    record.content["digest"] = _digest_of(out)
    _tell(verb, out, result)


def _out(verb: Verb, config: Config, parsed: argparse.Namespace) -> str:
    return parsed.out or f"runs/{getattr(config, 'name', verb.name)}/{verb.name}"


def _goes(verb: Verb, config: Config) -> bool:
    """Whether the verb becomes a job elsewhere."""
    compute: Any = getattr(config, "compute", None)
    if verb.here or not getattr(compute, "takes_jobs", False):
        return False
    return not (verb.service and compute.type == "kuberay")


def _run_as_job(
    prog: str,
    verb: Verb,
    config: Config,
    flags: Mapping[str, Any],
    parsed: argparse.Namespace,
    record: _Record,
) -> None:
    import importlib

    from rayrun.ray.request import request

    compute: Any = getattr(config, "compute")  # noqa: B009 - any product's
    launchers = {"kuberay": "rayrun.kube.launch", "attached": "rayrun.ray.submit"}
    launcher: Any = importlib.import_module(launchers[compute.type])
    out, kept = _out(verb, config, parsed), parsed.store if verb.store else None
    asked = request(prog, verb, config, flags, out=out, kept=kept or "")
    if parsed.dry_run:
        where = f"{verb.name} would write to {asked.place}"
        print(f"{launcher.plan(asked)}\n\n{where}; nothing was done (--dry-run)")
        return
    record.content["uri"] = "" if asked.stored else asked.place
    done = launcher.run(asked)
    made = done.record or {"digest": _digest_of(asked.place)}
    record.content |= {n: made[n] for n in ("uri", "key", "cached", "digest") if n in made}
    if done.result is not None:
        _tell(verb, asked.place, done.result)


def _run_stored(
    prog: str,
    verb: Verb,
    config: Config,
    flags: Mapping[str, Any],
    parsed: argparse.Namespace,
    record: _Record,
) -> None:
    from rayrun import store

    if parsed.dry_run:
        key = store.key_of(prog, verb, config, flags)
        uri, what = store.look(prog, verb, key, parsed.store)
        plan = f"# {config.digest()}\n{config.to_yaml()}"
        if verb.plan is not None:
            plan = resolve(verb.plan)(config, uri, **flags)
        made_from = json.dumps(key.parts, indent=1)
        print(f"{plan}\n\nthe key of the result is made from {made_from}")
        print(f"{verb.name} would {what}; nothing was done (--dry-run)")
        return
    key = store.key_of(prog, verb, config, flags)
    record.content |= {"uri": key.place(parsed.store, prog, verb.name), "key": key.digest}
    kept = store.run(prog, verb, config, flags, key, parsed.store)
    record.content |= {"cached": kept.cached, "digest": _digest_of(kept.uri)}
    _tell(verb, kept.uri, kept.result, cached=kept.cached)


def _digest_of(out: str) -> str:
    """Of the artifact that a verb made; empty where it made none (a draft, a deployment)."""
    from rayrun import manifest, storage

    if not storage.exists(storage.join(out, manifest.FILE)):
        return ""
    return manifest.content_of(out)


def _tell(verb: Verb, out: str, result: Any, *, cached: bool = False) -> None:
    from rayrun import storage
    from rayrun.metrics import Result

    if not isinstance(result, Result):
        if result is not None:
            print(result)
        return
    for line in _summary(result):
        print(line)
    report = storage.join(out, "report.html")
    how = "cached, verified" if cached else f"done in {result.wall_s:.1f} s"
    print(f"{verb.name}: {how}; {out}")
    if storage.exists(report):
        print(f"report: {report}")


def _summary(result: Any) -> list[str]:
    """A small table on the terminal: models down, task and metric across, headline metrics only."""
    rows: dict[str, dict[str, dict[str, float | None]]] = {}
    if result.metrics:
        rows = {"model": result.metrics, **result.baselines}
    lines: list[str] = []
    for task in result.metrics:
        names = [n for n in result.metrics[task] if "_low" not in n and "_high" not in n][:6]
        width = max(len(name) for name in rows)
        lines.append(f"{task} ({result.split})" if result.split else task)
        lines.append("  " + " " * width + "".join(f"{n:>18}" for n in names))
        for name, values in rows.items():
            found = [values.get(task, {}).get(n) for n in names]
            shown = "".join(f"{'-' if v is None else f'{v:.4f}':>18}" for v in found)
            lines.append(f"  {name:<{width}}{shown}")
    return lines


def _failed(error: Exception) -> int:
    from rayrun import storage

    seen: BaseException | None = error
    while seen is not None:  # an error of a Ray task carries the one of its worker as `cause`
        inner = getattr(seen, "cause", None)
        if isinstance(seen, ConfigError) and not isinstance(inner, ConfigError):
            print(f"error: {seen}", file=sys.stderr)
            return BAD_INPUT
        seen = inner if isinstance(inner, BaseException) else seen.__cause__
    if storage.is_disk_full(error):
        print(
            f"error: {storage.explain(error, getattr(error, 'filename', None) or os.getcwd())}",
            file=sys.stderr,
        )
        return BAD_INPUT
    traceback.print_exception(error)
    text = str(error).strip() or "no message"
    print(
        f"\nerror: this is a fault of the program, not of your input: {type(error).__name__}: "
        f"{text.splitlines()[0]}\nplease report it with the lines above",
        file=sys.stderr,
    )
    return FAULT


def _interrupted(prog: str, arguments: Sequence[str]) -> None:
    import shlex

    again = shlex.join([prog, *arguments])
    print(f"\ninterrupted; to go on, run again: {again}", file=sys.stderr)


class Cancelled(KeyboardInterrupt):
    """SIGTERM. Not KeyboardInterrupt itself: once one has crossed an `exec` of source text (a
    dataclass being made), Python ends by SIGINT whatever exit code is asked for.
    """


def _sigterm_interrupts() -> Any:
    # A cancelled job is told by SIGTERM: clean up and leave as for Ctrl-C. Once: whoever tells it
    # again at once (a parent with several threads that dies does) must not cut the clean-up short.
    raised_at = -REPEAT_S

    def interrupt(number: int, frame: object) -> None:
        nonlocal raised_at
        if time.monotonic() - raised_at >= REPEAT_S:
            raised_at = time.monotonic()
            raise Cancelled

    try:
        return signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread (a notebook's executor)
        return None


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    print(f"warning: {message}", file=sys.stderr)
