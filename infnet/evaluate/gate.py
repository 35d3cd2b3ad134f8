"""`infnet gate`: may the new model replace the live one? Both on the same rows, paired by user.

result.json  report.html  config.yaml  manifest.json

The live model is scored by its own bundle: its encoder, vocabularies and frozen look-ups, which
stand as they did at the end of *its* training. It was trained on an earlier period, so its
histories and statistics are older than those of the new model, by as much as it would be if it
stayed live: that is part of what is compared. The other way round it is flattered: rows that it was
trained on are counted, and told beside the decision.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from infnet.config import InfnetConfig
from infnet.evaluate.compare import Difference, difference
from infnet.evaluate.live import LiveScores, score_live
from infnet.evaluate.metrics import AVERAGE, Measurement, compute, metrics_of
from infnet.evaluate.predictions import Predictions, Rows, concatenate, read
from infnet.evaluate.report import LOWER_IS_BETTER
from infnet.evaluate.run import FORMAT_VERSION as EVALUATION_VERSION
from infnet.evaluate.run import KIND as EVALUATION_KIND
from infnet.evaluate.verdict import TaskVerdict, Verdict, details, report, says
from infnet.schema import Schema
from infnet.serve.bundle import Bundle
from infnet.tasks.base import BaseTask
from rayrun import manifest, storage
from rayrun.config import ConfigError
from rayrun.metrics import Metrics, Result

KIND = "infnet.gate"
FORMAT_VERSION = 1

NOTHING = "none"
"""Stands for the digest of the live bundle where there is none."""

FEWEST_REPLICATES = 20
"""Below, there is no interval to decide by (see `bootstrap.interval`)."""


@dataclass(frozen=True)
class Evaluation:
    """The new model's side."""

    rows: Rows
    """Ascending by row id."""
    tasks: Mapping[str, BaseTask]
    checkpoint: str
    """Content digest of the checkpoint that was evaluated."""


def gate(config: InfnetConfig, out: str) -> Result:
    """Decide whether the evaluated model may replace the live one. A decision is no error.

    Without a live bundle, or if it holds the evaluated checkpoint, the new model passes at once.
    Otherwise the live bundle scores the rows of the evaluation, and for each task that both models
    have `gate.metric` is compared with a paired user bootstrap. A task blocks if its whole 95 %
    interval is worse than live by more than `gate.margin`; the new model passes if none does.

    Args:
        config: `inputs.evaluation` is the output of `infnet evaluate` on the test split;
            `serve.live` where the live bundle stands, if there is one; `data.source` the raw log
            (`inputs.data`, if the live encoder made it, is read instead); `gate` and `evaluate`
            say what is compared.
        out: output directory.

    Returns:
        `result.json`: metrics of the new model, those of the live one under `baselines.live`, both
        on the rows that both scored; under `details` `decision` (`pass` or `blocked`), `reason`,
        `live` (digest), `differences`.

    Raises:
        ConfigError: no evaluation of a test split, another log, no task or row in common, a metric
            that no task has, or a live bundle that cannot be read or cannot score this log.
    """
    started = time.monotonic()
    with storage.claim(out), storage.output(out) as staging:
        evaluation = open_evaluation(config)
        check_metric(config, evaluation.tasks)
        verdict, measured = _decide(config, evaluation)
        result = Result.of(
            "gate",
            config,
            started=started,
            split="test",
            metrics=_metrics(measured.get("new")),
            baselines={"live": _metrics(measured["live"])} if measured else {},
            rows=verdict.rows,
            details=details(config, verdict),
        )
        result.write(staging)
        report(config, verdict).write(staging / "report.html")
        live = manifest.content_of(config.serve.live) if verdict.live else NOTHING
        inputs = {"checkpoint": evaluation.checkpoint, "live": live}
        manifest.write(
            staging, kind=KIND, format_version=FORMAT_VERSION, config=config, inputs=inputs
        )
    print(f"gate: {verdict.decision}: {verdict.reason}")
    return result


# ---------------------------------------------------------------------------------------------
# The two sides


def open_evaluation(config: InfnetConfig) -> Evaluation:
    """Predictions of the new model on the test split.

    Raises:
        ConfigError: `inputs.evaluation` is not set, damaged, of other rows than the test split, or
            of rolling statistics.
    """
    place = config.inputs.evaluation
    if not place:
        raise ConfigError(
            "inputs.evaluation must name the --out directory of `infnet evaluate`, found nothing; "
            "give that directory instead of CONFIG, or add --set inputs.evaluation=DIR"
        )
    found = manifest.read(place, kind=EVALUATION_KIND, format_version=EVALUATION_VERSION)
    split = Result.read(place).split
    if split != "test":
        raise ConfigError(
            f"inputs.evaluation ({place}) must be of the test split, found {split!r}; run "
            "`infnet evaluate` with --split test and without --data"
        )
    if found.config["data"].get("statistics") == "rolling":
        raise ConfigError(
            f"inputs.evaluation ({place}) must be of data.statistics: frozen, found rolling: the "
            "live model has frozen statistics, the two would not know the same; prepare, train and "
            "evaluate with data.statistics: frozen"
        )
    with TemporaryDirectory(prefix="gate-") as folder:
        local = storage.fetch(place, Path(folder))
        manifest.verify(str(local))
        schema = Schema.read(local / "schema.json")
        scored = read(local / "predictions", tuple(schema.tasks), exact_rows=sys.maxsize)
    rows = concatenate(list(scored.partitions()), len(schema.tasks))
    rows = rows.take(np.argsort(rows.row_id, kind="stable"))
    return Evaluation(rows, schema.tasks, str(found.info.get("checkpoint", "")))


def check_metric(config: InfnetConfig, tasks: Mapping[str, BaseTask]) -> None:
    """`gate.metric` is one of some task, and there are replicates to decide by.

    Raises:
        ConfigError: no task has it, or `evaluate.bootstrap` is too small.
    """
    known = list(
        dict.fromkeys(m for task in tasks.values() for m in metrics_of(task, ndcg_at(config)))
    )
    if config.gate.metric not in known:
        raise ConfigError(
            f"gate.metric must be a metric of one of the tasks ({', '.join(known)}), found "
            f"{config.gate.metric!r}"
        )
    if config.evaluate.bootstrap < FEWEST_REPLICATES:
        raise ConfigError(
            f"evaluate.bootstrap must be {FEWEST_REPLICATES} or more for the gate, which decides "
            f"by an interval; found {config.evaluate.bootstrap}"
        )


def ndcg_at(config: InfnetConfig) -> tuple[int, ...]:
    """The k of nDCG@k that are computed: those of `evaluate`, and the one of `gate.metric`."""
    name, at = config.gate.metric.partition("@")[::2]
    own = (int(at),) if name == "ndcg" and at.isdigit() and int(at) > 0 else ()
    return tuple(dict.fromkeys((*config.evaluate.ndcg_at, *own)))


def open_live(config: InfnetConfig) -> Bundle | None:
    """The bundle at `serve.live`; None if nothing is live.

    Raises:
        ConfigError: what stands there is no bundle, damaged, or of a newer format.
    """
    place = config.serve.live
    if not place or not storage.exists(place):
        return None
    try:
        return Bundle.open(place)
    except ConfigError as error:
        raise ConfigError(
            f"serve.live ({place}) cannot be compared with: {error}. Roll back to a whole bundle "
            "there, or set serve.live to another place"
        ) from error


def common_tasks(
    config: InfnetConfig, new: Mapping[str, BaseTask], live: Mapping[str, BaseTask]
) -> tuple[dict[str, BaseTask], dict[str, str]]:
    """(tasks that can be compared, why each of the others cannot).

    A task is common if both have one of that name, of the same label, with `gate.metric`.
    """
    metric = config.gate.metric
    common: dict[str, BaseTask] = {}
    others: dict[str, str] = {}
    for name in dict.fromkeys([*new, *live]):
        if name not in live:
            others[name] = "the live model does not have it"
        elif name not in new:
            others[name] = "the new model does not have it"
        elif new[name].source != live[name].source:
            others[name] = "its label is another one in the live model"
        elif any(metric not in metrics_of(of[name], ndcg_at(config)) for of in (new, live)):
            others[name] = f"it has no {metric}"
        else:
            common[name] = new[name]
    return common, others


# ---------------------------------------------------------------------------------------------
# The decision


def _decide(config: InfnetConfig, evaluation: Evaluation) -> tuple[Verdict, dict[str, Measurement]]:
    bundle = open_live(config)
    if bundle is None:
        return Verdict("pass", "there is no live model"), {}
    exported = manifest.read_raw(config.serve.live)["info"].get("checkpoint")
    if evaluation.checkpoint and evaluation.checkpoint == exported:
        return Verdict("pass", "the live model is this very model", bundle.digest), {}
    common, others = common_tasks(config, evaluation.tasks, bundle.schema.tasks)
    if not common:
        raise ConfigError(
            f"gate: no task of the live model at serve.live ({config.serve.live}) can be compared: "
            + "; ".join(f"{task}: {why}" for task, why in others.items())
            + "; set serve.live to another place if the new model shall not replace it"
        )
    scores = _score(config, bundle, evaluation, list(common))
    measured = _measure(config, evaluation, scores, common)
    tasks: list[TaskVerdict] = []
    for task in common:
        found = difference([measured["new"]], [measured["live"]], task, config.gate.metric)
        if found is None:
            reasons = measured["new"].reasons.get(task, {})
            others[task] = reasons.get(config.gate.metric, "too few users have both labels")
            continue
        tasks.append(_verdict(config, task, measured, found))
    if not tasks:
        raise ConfigError(
            f"gate.metric ({config.gate.metric}) is defined for no task on these "
            f"{int(scores.scored.sum())} rows: "
            + "; ".join(f"{task}: {why}" for task, why in others.items())
            + "; name another metric, or evaluate on more rows"
        )
    blocking = [one for one in tasks if one.blocks]
    reason = "; ".join(says(config, one) for one in blocking or tasks)
    if blocking and scores.seen:
        reason += f"; the live model was trained on {scores.seen:,} of these rows, it is flattered"
    return (
        Verdict(
            "blocked" if blocking else "pass",
            reason,
            bundle.digest,
            tuple(tasks),
            others,
            int(scores.scored.sum()),
            scores.seen,
        ),
        measured,
    )


def _score(
    config: InfnetConfig, bundle: Bundle, evaluation: Evaluation, tasks: Sequence[str]
) -> LiveScores:
    found = score_live(config, bundle, evaluation.rows, tasks)
    if not found.scored.any():
        raise ConfigError(
            f"inputs.evaluation ({config.inputs.evaluation}) has no row in common with "
            "data.source that the live model can score; name the log that was evaluated, or "
            "evaluate again"
        )
    return found


def _measure(
    config: InfnetConfig,
    evaluation: Evaluation,
    scores: LiveScores,
    common: Mapping[str, BaseTask],
) -> dict[str, Measurement]:
    """Both models on the rows that both scored, with the same users in each replicate."""
    order = [list(evaluation.tasks).index(task) for task in common]
    rows = evaluation.rows
    new = replace(
        rows,
        prediction=rows.prediction[:, order],
        label=rows.label[:, order],
        observed=rows.observed[:, order],
    ).take(scores.scored)
    live = replace(new, prediction=scores.prediction[scores.scored])
    measured: dict[str, Measurement] = {}
    for name, side in (("new", new), ("live", live)):
        predictions = Predictions(list(common))
        predictions.add(side)
        measured[name] = compute(
            predictions,
            common,
            bootstrap=config.evaluate.bootstrap,
            seed=config.evaluate.seed,
            ndcg_at=ndcg_at(config),
        )
    return measured


def _verdict(
    config: InfnetConfig, task: str, measured: Mapping[str, Measurement], found: Difference
) -> TaskVerdict:
    metric = config.gate.metric
    new, live = (measured[side].values[task][metric] for side in ("new", "live"))
    assert new is not None  # a difference is defined
    assert live is not None
    low, high, gain = found.users.low, found.users.high, found.value
    if metric in LOWER_IS_BETTER:
        low, high, gain = -high, -low, -gain
    return TaskVerdict(task, new, live, gain, low, high, high < -config.gate.margin)


def _metrics(measured: Measurement | None) -> Metrics:
    if measured is None:
        return {}
    return {task: row for task, row in measured.values.items() if task != AVERAGE}
