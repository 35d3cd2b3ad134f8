"""The command line every verb shares: `PROG VERB CONFIG [--set a.b=v]… [--out DIR] [--dry-run]`.

A product lists its verbs and calls `main`. A verb's work is an ordinary function `run(config, out,
**flags) -> Result`, named by an import path, so that `--help` imports neither torch nor Ray and a
notebook calls the same function.

Exit codes: 0 done; 2 bad input (one readable error); 1 a fault of ours; 130 interrupted, resumable.
"""

import argparse
import importlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from rayrun import __version__
from rayrun.config import Config, ConfigError, Json, apply_override, parse_yaml, validate

DONE, FAULT, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

INPUT_OF = {
    "dataset": "data",
    "run": "checkpoint",
    "checkpoint": "checkpoint",
    "model": "model",
    "scores": "scores",
    "plan": "plan",
    "bundle": "bundle",
}
"""Which `inputs.<name>` an earlier output fills, by the second part of its manifest's kind."""

Target = str | Callable[..., Any]
"""A function or class, or where to import it from: `infnet.train.run:train`."""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """An argument of one verb, beside those that all verbs share."""

    name: str
    """Keyword of the run function; `--name` on the command line, or a word if `positional`."""
    help: str
    type: Callable[[str], Any] = str
    default: Any = None
    choices: Sequence[str] | None = None
    required: bool = False
    positional: bool = False


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One verb of a product."""

    name: str
    help: str
    """One line for the list of verbs."""
    run: Target
    """`run(config, out, **flags) -> Result`; without a config class, `run(out, **flags)`."""
    config: Target | None = None
    """The configuration class. None: the verb takes no CONFIG (`init FILE`)."""
    plan: Target | None = None
    """`plan(config, out, **flags) -> str`: what `--dry-run` prints. It writes nothing."""
    flags: tuple[Flag, ...] = ()
    out: str = ""
    """Default of `--out` for a verb without CONFIG; others write to `runs/<config name>/<verb>`."""


def main(prog: str, verbs: Sequence[Verb], argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code; every error ends in a readable line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        parsed = _parser(prog, verbs).parse_args(arguments)
    except SystemExit as end:  # argparse: --help is 0, a wrong argument 2
        return end.code if isinstance(end.code, int) else BAD_INPUT
    verb = next(v for v in verbs if v.name == parsed.verb)
    before = _sigterm_interrupts()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _run(verb, parsed)
    except KeyboardInterrupt:
        _interrupted(prog, arguments)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output (`| head`) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        return _failed(error)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def resolve(target: Target) -> Any:
    """The function or class a target names."""
    if not isinstance(target, str):
        return target
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def load_config(cls: type[Config], source: str, sets: Iterable[str] = ()) -> Config:
    """The configuration at `source`: a YAML file, or the output directory of an earlier verb.

    From a directory, its `config.yaml` is read and the input it can serve as is set to it.

    Raises:
        ConfigError: nothing there, no output directory, or invalid content.
    """
    from rayrun import manifest, storage

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
        content = loaded
    return validate(cls, content, where=place)


# ---------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"error: {message}; `{self.prog} --help` shows what there is", file=sys.stderr)
        raise SystemExit(BAD_INPUT)


def _parser(prog: str, verbs: Sequence[Verb]) -> argparse.ArgumentParser:
    parser = _Parser(prog=prog, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{prog} {__version__}")
    of_verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in verbs:
        sub = of_verbs.add_parser(
            verb.name, help=verb.help, description=verb.help, allow_abbrev=False
        )
        if verb.config is not None:
            sub.add_argument(
                "config", metavar="CONFIG", help="a YAML file, or the --out of an earlier verb"
            )
        for flag in verb.flags:
            _add(sub, flag)
        if verb.config is not None:
            sub.add_argument(
                "--set",
                dest="sets",
                action="append",
                default=[],
                metavar="KEY=VALUE",
                help="set one key (train.epochs=2); KEY=@FILE merges a YAML fragment; repeatable",
            )
            default = f"runs/<config name>/{verb.name}"
        else:
            default = verb.out or "."
        sub.add_argument("--out", metavar="DIR", help=f"where the result goes (default {default})")
        sub.add_argument(
            "--dry-run", action="store_true", help="check everything, print the plan, do nothing"
        )
    return parser


def _add(parser: argparse.ArgumentParser, flag: Flag) -> None:
    kinds: dict[str, Any] = {"help": flag.help, "type": flag.type, "choices": flag.choices}
    if flag.positional:
        if not flag.required:
            kinds |= {"nargs": "?", "default": flag.default}
        parser.add_argument(flag.name, metavar=flag.name.upper(), **kinds)
        return
    parser.add_argument(
        "--" + flag.name.replace("_", "-"),
        dest=flag.name,
        default=flag.default,
        required=flag.required,
        metavar=None if flag.choices else flag.name.upper(),
        **kinds,
    )


def _run(verb: Verb, parsed: argparse.Namespace) -> int:
    flags: Mapping[str, Any] = {flag.name: getattr(parsed, flag.name) for flag in verb.flags}
    if verb.config is None:
        before: tuple[Any, ...] = ()
        out = parsed.out or verb.out or "."
        described = ""
    else:
        config = load_config(resolve(verb.config), parsed.config, parsed.sets)
        before = (config,)
        out = parsed.out or f"runs/{getattr(config, 'name', verb.name)}/{verb.name}"
        described = f"# {config.digest()}\n{config.to_yaml()}"
    if parsed.dry_run:
        plan = resolve(verb.plan)(*before, out, **flags) if verb.plan is not None else described
        print(f"{plan}\n\n{verb.name} would write to {out}; nothing was done (--dry-run)")
        return DONE
    if verb.config is None:
        result = resolve(verb.run)(out, **flags)
    else:
        from rayrun import storage

        with storage.claim(out):
            result = resolve(verb.run)(*before, out, **flags)
    _tell(verb, out, result)
    return DONE


def _tell(verb: Verb, out: str, result: Any) -> None:
    from rayrun import storage
    from rayrun.metrics import Result

    if not isinstance(result, Result):
        if result is not None:
            print(result)
        return
    for line in _summary(result):
        print(line)
    report = storage.join(out, "report.html")
    print(f"{verb.name}: done in {result.wall_s:.1f} s; {out}")
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
    # A cancelled job is told by SIGTERM: clean up and leave as for Ctrl-C.
    def interrupt(number: int, frame: object) -> NoReturn:
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
