"""The arguments every verb shares, and those of its own, as an argparse parser."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from rayrun import __version__
from rayrun.verb import Flag, Verb

BAD_INPUT = 2
"""Exit code of a wrong argument, and of any other bad input."""


def parser(prog: str, verbs: Sequence[Verb]) -> argparse.ArgumentParser:
    """The parser of `PROG VERB …`; a wrong argument ends in one line, and exit code 2."""
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
        where = sub.add_mutually_exclusive_group()
        where.add_argument(
            "--out", metavar="DIR", help=f"where the result goes (default {default})"
        )
        if verb.store:
            where.add_argument(
                "--store",
                metavar="URI",
                help="instead: keep the result there by the content it is made from, and use it "
                "again when nothing of that has changed",
            )
        sub.add_argument(
            "--record", metavar="FILE", help="write what was done, and where it lies, there as JSON"
        )
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


# ---------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"error: {message}; `{self.prog} --help` shows what there is", file=sys.stderr)
        raise SystemExit(BAD_INPUT)
