"""`infnet compare`: the model and its rivals over several seeds, with paired differences.

    out/data/              the prepared dataset, unless `inputs.data` names one
        seed-<k>/train     a run of `infnet train`, resumable
        seed-<k>/evaluate  its evaluation on the split
        result.json  report.html  table.md  manifest.json  config.yaml

A seed draws the initial weights, the order of the rows and the dropout; the data is the same.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from infnet.config import InfnetConfig
from infnet.data.prepare import prepare
from infnet.evaluate.compare import Comparison, Row
from infnet.evaluate.compare import compare as compare_predictions
from infnet.evaluate.report import LOWER_IS_BETTER
from infnet.evaluate.run import RIVALS, evaluate
from infnet.train.run import train
from rayrun import manifest, storage
from rayrun.config import ConfigError
from rayrun.metrics import Result
from rayrun.ray.session import session
from rayrun.report import Report, Value

KIND = "infnet.comparison"
FORMAT_VERSION = 1
PREDICTIONS = "predictions"


def compare(config: InfnetConfig, out: str, split: str = "test") -> Result:
    """Train and evaluate with each of `compare.seeds`, then compare all models on the same rows.

    What is complete under `out` is not done again, so a stopped comparison goes on where it
    stopped. The differences are between means over seeds; their interval covers other users and
    other seeds (see `infnet.evaluate.compare.compare`).

    Args:
        config: a whole run with `rivals`; `train.seed` is replaced by each of `compare.seeds`.
        out: a local output directory.
        split: part of the prepared data that is compared on, `test` or `valid`.

    Returns:
        `result.json`: means over seeds; under `details.differences` the paired intervals.

    Raises:
        ConfigError: no rivals to compare with, an S3 output, or whatever train and evaluate refuse.
    """
    started = time.monotonic()
    if not config.rivals:
        raise ConfigError(
            "compare needs at least one entry under rivals:, found none; add "
            "`rivals: {floor: {type: floor}}`"
        )
    root = storage.local_path(out)
    if root is None:
        raise ConfigError(f"compare needs a local --out directory, found {out}")
    with storage.claim(out), session(config.compute):
        data = config.inputs.data or str(root / "data")
        if not storage.exists(storage.join(data, manifest.FILE)):
            prepare(config, data)
        places = [
            _one_seed(config, root / f"seed-{seed}", data, seed, split)
            for seed in config.compare.seeds
        ]
    own = config.model.type if config.model.type not in config.rivals else f"{config.model.type}*"
    runs = {own: [place / PREDICTIONS for place in places]}
    for name in config.rivals:
        runs[name] = [place / RIVALS / name / PREDICTIONS for place in places]
    compared = compare_predictions(
        runs,
        bootstrap=config.evaluate.bootstrap,
        seed=config.evaluate.seed,
        ndcg_at=config.evaluate.ndcg_at,
    )
    result = Result.of(
        "compare",
        config,
        started=started,
        split=split,
        metrics=_means(compared, own),
        baselines={name: _means(compared, name) for name in config.rivals},
        rows=compared.num_rows,
        details={"seeds": list(config.compare.seeds), "differences": compared.to_json()},
    )
    result.write(root)
    (root / manifest.CONFIG_FILE).write_text(config.to_yaml(), encoding="utf-8")
    _report(config, compared, split).write(root / "report.html")
    storage.write_bytes(root / "table.md", table(config, compared, split).encode())
    inputs = {"data": manifest.read_raw(data)["config_digest"]}
    manifest.write(
        root,
        kind=KIND,
        format_version=FORMAT_VERSION,
        config=config,
        inputs=inputs,
        exclude=("data/*", "seed-*/*"),
    )
    return result


def _one_seed(config: InfnetConfig, place: Path, data: str, seed: int, split: str) -> Path:
    seeded = config.model_copy(
        update={
            "train": config.train.model_copy(update={"seed": seed}),
            "inputs": config.inputs.model_copy(update={"data": data}),
        }
    )
    train(seeded, str(place / "train"))
    measured = place / f"evaluate-{split}"
    if not (measured / manifest.FILE).exists():
        inputs = seeded.inputs.model_copy(update={"checkpoint": str(place / "train")})
        evaluate(
            seeded.model_copy(update={"inputs": inputs}),
            str(measured),
            "valid" if split == "valid" else "test",
        )
    return measured


def _means(compared: Comparison, model: str) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {}
    for row in compared.rows:
        if row.model == model and row.task in _tasks(compared):
            found.setdefault(row.task, {})[row.metric] = row.mean
    return found


def _tasks(compared: Comparison) -> list[str]:
    return list(dict.fromkeys(row.task for row in compared.rows))


def _report(config: InfnetConfig, compared: Comparison, split: str) -> Report:
    seeds = ", ".join(map(str, config.compare.seeds))
    page = Report(
        f"Comparison of {config.name}",
        subtitle=f"{split} split: {compared.num_rows:,} rows of {compared.num_users:,} users; "
        f"seeds {seeds}",
    )
    page.text(
        "Means over seeds ± standard deviation between seeds. A difference is between means; its "
        "interval covers other users (paired bootstrap, the same draw of users for all models) and "
        "other seeds. Models whose interval holds 0 are not ranked."
    )
    models = list(dict.fromkeys(row.model for row in compared.rows))
    for task in _tasks(compared):
        by_model = {
            model: {r.metric: r for r in compared.rows if (r.model, r.task) == (model, task)}
            for model in models
        }
        metrics = [m for m in config.compare.metrics if m in by_model[compared.first]]
        page.heading(task)
        page.table(
            ["metric", *models],
            [[m, *(_mean(by_model[model][m], "\n± ") for model in models)] for m in metrics],
            f"{task}: mean over {len(config.compare.seeds)} seeds",
        )
        found = _differences(by_model, compared.first, metrics)
        page.table(
            ["metric", "rival", "difference, 95 % interval", "smallest told", "better"],
            [
                [metric, rival, f"{by}\n{between}", *rest]
                for metric, rival, by, between, *rest in found
            ],
            f"{task}: {compared.first} minus each rival",
        )
    page.heading("Configuration")
    page.details("config.yaml", config.to_yaml())
    return page


def table(config: InfnetConfig, compared: Comparison, split: str) -> str:
    """The comparison in Markdown, `table.md`: one table of means, one of differences."""
    models = list(dict.fromkeys(row.model for row in compared.rows))
    means: list[Sequence[Value]] = []
    differences: list[Sequence[Value]] = []
    for task in _tasks(compared):
        by_model = {
            model: {r.metric: r for r in compared.rows if (r.model, r.task) == (model, task)}
            for model in models
        }
        metrics = [m for m in config.compare.metrics if m in by_model[compared.first]]
        means += [[task, m, *(_mean(by_model[x][m], " ± ") for x in models)] for m in metrics]
        differences += [[task, *row] for row in _differences(by_model, compared.first, metrics)]
    seeds = len(config.compare.seeds)
    return (
        f"{config.name}, {split} split: {compared.num_rows:,} rows of {compared.num_users:,} "
        f"users, {seeds} seeds; mean ± standard deviation between seeds\n\n"
        + _markdown(["task", "metric", *models], means)
        + f"\n{compared.first} minus each rival; 95 % intervals over users and seeds\n\n"
        + _markdown(
            ["task", "metric", "rival", "difference", "95 % interval", "smallest told", "better"],
            differences,
        )
    )


def _markdown(headers: Sequence[str], rows: Sequence[Sequence[Value]]) -> str:
    lines: list[Sequence[Value]] = [headers, ["---"] * len(headers), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def _mean(row: Row, between: str) -> str:
    if row.mean is None:
        return "–"
    return f"{row.mean:.4f}" + (f"{between}{row.seed_sd:.4f}" if row.seed_sd is not None else "")


def _differences(
    by_model: Mapping[str, Mapping[str, Row]], first: str, metrics: Sequence[str]
) -> list[list[Value]]:
    rows: list[list[Value]] = []
    for metric in metrics:
        for model, found in by_model.items():
            difference = found[metric].difference
            if difference is None:
                continue
            # a Difference is rival − model, the table reads model − rival
            better = -difference.value if metric not in LOWER_IS_BETTER else difference.value
            verdict = "not told apart"
            if difference.clear:
                verdict = first if better > 0 else model
            rows.append(
                [
                    metric,
                    model,
                    f"{-difference.value:+.4f}",
                    f"[{-difference.high:+.4f}, {-difference.low:+.4f}]",
                    f"{difference.smallest:.4f}",
                    verdict,
                ]
            )
    return rows
