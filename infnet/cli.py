"""The `infnet` command: from a raw log to a trained and measured multitask model.

Every verb is a documented Python function on the same configuration object; a notebook calls it as
the shell does: `infnet.train.run.train(config, out)`.
"""

import sys
from collections.abc import Sequence

from infnet import sections
from rayrun.cli import Flag, Verb
from rayrun.cli import main as run_verb

CONFIG = "infnet.config:InfnetConfig"

SPLIT = Flag(
    name="split",
    help="part of the prepared data (default test)",
    default="test",
    choices=("valid", "test"),
)

VERBS = (
    Verb(
        name="init",
        help="read a CSV or Parquet log and write a commented configuration to start from",
        run="infnet.data.init:init_verb",
        flags=(Flag(name="file", help="the log, CSV or Parquet", positional=True, required=True),),
    ),
    Verb(
        name="download",
        help="fetch a public data set from its publisher and verify its digest",
        run="rayrun.data.download:verb",
        flags=(
            Flag(
                name="name", help="kuairand_pure, movielens_1m, …", positional=True, required=True
            ),
        ),
        out="data",
    ),
    Verb(
        name="prepare",
        help="raw log → fitted schema → Parquet shards",
        run="infnet.data.prepare:prepare",
        config=CONFIG,
        plan="infnet.plan:plan_prepare",
        store=True,
        sections=sections.PREPARE,
        inputs=(),
        reads="infnet.keys:raw_log",
    ),
    Verb(
        name="train",
        help="train the model and its rivals on prepared shards (prepares first if there are none)",
        run="infnet.train.run:train",
        config=CONFIG,
        plan="infnet.plan:plan_train",
        store=True,
        sections=sections.TRAIN,
        inputs=("data",),
        reads="infnet.keys:to_train",
    ),
    Verb(
        name="tune",
        help="search the counts of proxies, or any values of model and train",
        run="infnet.tune.run:tune",
        config=CONFIG,
        plan="infnet.plan:plan_tune",
        store=True,
        sections=sections.TUNE,
        inputs=("data",),
        reads="infnet.keys:to_tune",
    ),
    Verb(
        name="evaluate",
        help="metrics with intervals, the model beside its rivals",
        run="infnet.evaluate.run:evaluate",
        config=CONFIG,
        flags=(
            SPLIT,
            Flag(
                name="data",
                help="raw rows in the source's own columns, instead of a split",
                place=True,
            ),
        ),
        store=True,
        sections=sections.EVALUATE,
        inputs=("checkpoint", "data", "evaluation"),
        reads="infnet.keys:to_evaluate",
    ),
    Verb(
        name="gate",
        help="may the evaluated model replace the live one? paired on the same test rows",
        run="infnet.evaluate.gate:gate",
        config=CONFIG,
        store=True,
        sections=sections.GATE,
        inputs=("evaluation", "data"),
        reads="infnet.keys:to_gate",
    ),
    Verb(
        name="predict",
        help="score a file of raw rows to Parquet",
        run="infnet.evaluate.predict:predict",
        config=CONFIG,
        flags=(Flag(name="data", help="raw rows in the source's own columns", required=True),),
    ),
    Verb(
        name="export",
        help="trained model → serve bundle: ONNX graph, embedding tables, encoder, sample",
        run="infnet.serve.export:export",
        config=CONFIG,
        flags=(Flag(name="rival", help="export this rival instead of the model", default=""),),
        store=True,
        sections=sections.EXPORT,
        inputs=("checkpoint",),
        reads="infnet.keys:trained",
    ),
    Verb(
        name="serve",
        help="answer POST /score with a bundle until Ctrl-C",
        run="infnet.serve.run:serve",
        config=CONFIG,
        plan="infnet.serve.run:plan",
        here=True,
    ),
    Verb(
        name="deploy",
        help="put a bundle on a running Ray Serve, beside what is live there until it answers",
        run="infnet.serve.run:deploy",
        config=CONFIG,
        plan="infnet.serve.run:plan",
        service=True,
    ),
    Verb(
        name="compare",
        help="train and evaluate over several seeds; paired differences with intervals",
        run="infnet.seeds:compare",
        config=CONFIG,
        plan="infnet.plan:plan_train",
        flags=(SPLIT,),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    return run_verb("infnet", VERBS, argv)


if __name__ == "__main__":
    sys.exit(main())
