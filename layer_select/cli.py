"""The `layer-select` command. Its verbs are added with the rooms that do their work; none yet."""

import sys
from collections.abc import Sequence

from rayrun.cli import Verb
from rayrun.cli import main as run_verb

VERBS: tuple[Verb, ...] = ()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    return run_verb("layer-select", VERBS, argv)


if __name__ == "__main__":
    sys.exit(main())
