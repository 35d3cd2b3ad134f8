"""The `layer-select` command: from a language model to the layers that recommending needs."""

import sys
from collections.abc import Sequence

from rayrun.cli import Verb
from rayrun.cli import main as run_verb

CONFIG = "layer_select.config:LayerSelectConfig"

VERBS: tuple[Verb, ...] = (
    Verb(
        name="pretrain-tiny",
        help="train a small decoder of our own on histories of titles; it must beat popularity",
        run="layer_select.pretrain.run:pretrain",
        config=CONFIG,
        plan="layer_select.pretrain.run:plan",
        store=True,
        sections=("data", "task", "pretrain"),
        inputs=(),
        reads="layer_select.keys:histories",
    ),
    Verb(
        name="fit-head",
        help="fit a rating head on the last hidden state of a model; ratings are scored by it",
        run="layer_select.task.fit_head:fit_head",
        config=CONFIG,
        plan="layer_select.task.fit_head:plan",
        store=True,
        sections=("data", "task", "score.dtype", "score.execution"),
        inputs=(),
        reads="layer_select.keys:to_score",
    ),
    Verb(
        name="score",
        help="what each layer contributes to the task, by every method",
        run="layer_select.importance.run:score",
        config=CONFIG,
        plan="layer_select.importance.run:plan",
        store=True,
        sections=("data", "task", "score"),
        inputs=(),
        reads="layer_select.keys:to_score",
    ),
    Verb(
        name="select",
        help="choose the layers that stay, by what the task loses, under a budget",
        run="layer_select.selection.run:select",
        config=CONFIG,
        plan="layer_select.selection.run:plan",
        store=True,
        sections=("data", "task", "select", "score.dtype", "score.execution"),
        inputs=("scores",),
        reads="layer_select.keys:to_score",
    ),
    Verb(
        name="compact",
        help="write the model that a plan leaves, its gaps repaired",
        run="layer_select.compact.run:compact",
        config=CONFIG,
        plan="layer_select.compact.run:plan",
        store=True,
        sections=("data", "task", "compact", "score.dtype", "score.execution"),
        inputs=("plan",),
        reads="layer_select.keys:to_score",
    ),
    Verb(
        name="export",
        help="a bundle to serve: Hugging Face folder, GGUF for Ollama, item vectors, catalogue",
        run="layer_select.export.run:export",
        config=CONFIG,
        plan="layer_select.export.run:plan",
        store=True,
        sections=("data", "task", "export", "score.dtype", "score.execution"),
        inputs=(),
        reads="layer_select.keys:to_export",
    ),
    Verb(
        name="embed",
        help="vectors of items and users as Parquet, for other models to read",
        run="layer_select.export.embed:embed",
        config=CONFIG,
        plan="layer_select.export.embed:plan",
        store=True,
        sections=("data", "task", "embed", "score.dtype", "score.execution"),
        inputs=(),
        reads="layer_select.keys:to_embed",
    ),
    Verb(
        name="evaluate",
        help="the smaller model beside the full one, popularity, SASRec and other layers",
        run="layer_select.evaluate.run:evaluate",
        config=CONFIG,
        plan="layer_select.evaluate.run:plan",
        store=True,
        sections=("data", "task", "evaluate", "heal", "score.dtype"),
        inputs=("student", "scores"),
        reads="layer_select.keys:to_score",
    ),
    Verb(
        name="heal",
        help="train the smaller model on the task and on what the full model says",
        run="layer_select.heal.run:heal",
        config=CONFIG,
        plan="layer_select.heal.run:plan",
        store=True,
        sections=("data", "task", "select", "heal"),
        inputs=("plan", "student"),
        reads="layer_select.keys:to_score",
    ),
    Verb(
        name="run",
        help="score, select, compact, heal, evaluate and export in one go",
        run="layer_select.run:run",
        config=CONFIG,
        plan="layer_select.run:plan",
    ),
    Verb(
        name="serve",
        help="answer POST /recommend with a bundle until Ctrl-C",
        run="layer_select.serve.run:serve",
        config=CONFIG,
        plan="layer_select.serve.run:plan",
        here=True,
    ),
    Verb(
        name="deploy",
        help="put a bundle on a running Ray Serve, beside what is live there until it answers",
        run="layer_select.serve.run:deploy",
        config=CONFIG,
        plan="layer_select.serve.run:plan",
        service=True,
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    return run_verb("layer-select", VERBS, argv)


if __name__ == "__main__":
    sys.exit(main())
