"""`python -m pipelines`: list the pipelines, compile them, run one here or on a KFP backend.

Exit codes: 0 done; 2 bad input (one readable error); 1 a fault; 130 interrupted, resumable.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pipelines import PIPELINES, submit

DONE, FAULT, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"error: {message}; `{self.prog} --help` shows what there is", file=sys.stderr)
        raise SystemExit(BAD_INPUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    try:
        parsed, rest = parser.parse_known_args(given)
        takes_arguments = parsed.command in ("run", "submit", "schedule")
        if rest and (not takes_arguments or any(word.startswith("-") for word in rest)):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
    except SystemExit as end:  # argparse: --help is 0, a wrong argument 2
        return end.code if isinstance(end.code, int) else BAD_INPUT
    from pipelines.compiled import PipelineError
    from rayrun.config import ConfigError

    try:
        if parsed.command == "list":
            return _list()
        if parsed.command == "compile":
            return _compile(parsed.names, parsed.out, with_components=parsed.components)
        if parsed.command == "serve":
            return _serve(parsed)
        if parsed.command in ("submit", "schedule"):
            send = {"submit": submit.submit, "schedule": submit.schedule}[parsed.command]
            return send(parsed, [*parsed.arguments, *rest])
        return _run(parsed, [*parsed.arguments, *rest], given)
    except (PipelineError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"\ninterrupted; to go on, run again: {_again(given)}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output (`| head`) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m pipelines", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("list", help="the pipelines and their arguments", allow_abbrev=False)
    compiling = commands.add_parser(
        "compile", help="write the YAML that a KFP backend takes", allow_abbrev=False
    )
    compiling.add_argument("names", nargs="*", metavar="NAME", help="which (default: all)")
    compiling.add_argument("--out", default=".", metavar="DIR", help="where (default .)")
    compiling.add_argument(
        "--components", action="store_true", help="each step by itself too, in DIR/components"
    )
    running = commands.add_parser(
        "run", help="run one on this machine, with a live view", allow_abbrev=False
    )
    running.add_argument("name", metavar="NAME", help="the pipeline")
    running.add_argument("arguments", nargs="*", metavar="KEY=VALUE", help="its arguments")
    running.add_argument(
        "--root",
        metavar="URI",
        help="where the store and the runs are: a directory or s3://BUCKET/KEY (default runs/NAME)",
    )
    running.add_argument(
        "--set",
        dest="sets",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set one key of the configuration (train.epochs=2); repeatable",
    )
    running.add_argument(
        "--serve",
        action="store_true",
        help="start a Ray here that serves what the pipeline deploys, ask it, and go on serving",
    )
    running.add_argument(
        "--exit", action="store_true", help="with --serve: end after the first requests"
    )
    serving = commands.add_parser(
        "serve", help="applications of one file on one Ray Serve instance", allow_abbrev=False
    )
    serving.add_argument("file", metavar="FILE", help="as configs/serve/side_by_side.yaml")
    serving.add_argument("names", nargs="*", metavar="NAME", help="which of them (default: all)")
    serving.add_argument(
        "--set",
        dest="sets",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set one key of the file (applications.scorer.bundle=DIR); repeatable",
    )
    serving.add_argument(
        "--out", default="", metavar="DIR", help="records (default runs/<name of the file>/serve)"
    )
    submit.add_submit(commands)
    submit.add_schedule(commands)
    return parser


def _list() -> int:
    import yaml

    from pipelines.compiled import compiled, inputs_of, steps_of

    for name in PIPELINES:
        spec = yaml.safe_load(compiled(name))
        print(f"{name}: {spec['pipelineInfo'].get('description', '')}")
        print(f"  steps: {', '.join(steps_of(spec))}")
        for taken in inputs_of(spec).values():
            default = "" if taken.required else f" (default {taken.default!r})"
            print(f"  {taken.name}{default}: {taken.help}")
    return DONE


def _compile(names: Sequence[str], out: str, *, with_components: bool) -> int:
    from pipelines.compiled import PipelineError, compiled, compiled_component, steps_by_name

    written = {name: compiled(name) for name in names or PIPELINES}
    if with_components:
        written |= {f"components/{name}": compiled_component(name) for name in steps_by_name()}
    folder = Path(out)
    try:
        for name, text in written.items():
            place = folder / f"{name}.yaml"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
            print(place)
    except OSError as error:
        raise PipelineError(
            f"--out {out} cannot be written ({error.strerror}); choose another directory"
        ) from None
    return DONE


def _run(parsed: argparse.Namespace, given: list[str], command: Sequence[str]) -> int:
    import yaml

    from pipelines.arguments import parse
    from pipelines.compiled import PipelineError, compiled, inputs_of, steps_of
    from pipelines.run import root_of, sigterm_interrupts

    if parsed.exit and not parsed.serve:
        raise PipelineError("--exit says when --serve ends; give --serve too, or leave it out")
    text = compiled(parsed.name)
    spec = yaml.safe_load(text)
    fixed: dict[str, object] = {"sets": list(parsed.sets)} if parsed.sets else {}
    if parsed.root or not any(word.startswith("root=") for word in given):
        fixed["root"] = parsed.root or f"runs/{parsed.name}"
    arguments = parse(parsed.name, inputs_of(spec), given, **fixed)
    arguments["root"] = root_of(arguments["root"])
    with sigterm_interrupts():
        if parsed.serve:
            from pipelines.serve import run_and_serve

            return run_and_serve(
                parsed.name, text, arguments, steps_of(spec), _again(command), stop=parsed.exit
            )
        from pipelines.run import run_once

        return run_once(parsed.name, text, arguments, steps_of(spec), _again(command))


def _serve(parsed: argparse.Namespace) -> int:
    from pipelines.applications import serve
    from pipelines.run import sigterm_interrupts

    with sigterm_interrupts():
        return serve(parsed.file, parsed.names, parsed.sets, parsed.out)


def _again(command: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "pipelines", *command])


if __name__ == "__main__":
    sys.exit(main())
