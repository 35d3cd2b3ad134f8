"""From what the workers found to `result.json`, the report and the table as text."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from layer_select.compact.origin import Origin
from layer_select.config import LayerSelectConfig
from layer_select.evaluate.bootstrap import Bootstrap
from layer_select.evaluate.config import Random
from layer_select.evaluate.contestants import STUDENT, Contestant
from layer_select.evaluate.measure import Columns
from layer_select.evaluate.report import markdown, report
from layer_select.evaluate.table import compare
from layer_select.evaluate.targets import targets
from layer_select.evaluate.worker import HOME
from layer_select.task.run import RecommendationTask
from rayrun.config import Json
from rayrun.metrics import Metrics, Result
from rayrun.report import Report


@dataclass(frozen=True)
class Found:
    """All that the table is made of."""

    models: list[Contestant]
    tasks: Mapping[str, RecommendationTask]
    """By domain."""
    columns: Mapping[str, Mapping[str, Columns]]
    """By domain and model."""
    sizes: Json
    timing: Json | None
    origin: Origin | None
    subject: str
    """The model that the others are compared with."""
    peak_memory_bytes: int


def finish(
    config: LayerSelectConfig, found: Found, *, started: float
) -> tuple[Result, Report, str]:
    """Result, page and table."""
    section = config.evaluate
    members = [m.name for m in found.models if m.name.startswith(f"{_RANDOM}_")]
    draws = {_RANDOM: members} if members else {}
    compared: dict[str, Json] = {}
    for domain, task in found.tasks.items():
        users = np.array([sample.user for sample in task.samples["test"]])
        compared[domain] = {
            "source": task.sequences.name,
            "samples": len(users),
            "users": len(np.unique(users)),
            **compare(
                found.columns[domain],
                found.subject,
                Bootstrap(users, section.bootstrap, section.seed),
                draws=draws,
            ),
        }
    details: Json = {
        "subject": found.subject,
        "domains": compared,
        "models": {
            m.name: {
                **found.sizes[m.name],
                "kept": None if m.layers is None else list(m.layers),
                "healed": m.healed,
            }
            for m in found.models
        },
        "timing": found.timing,
        "seen": section.seen,
    }
    if found.subject == STUDENT and config.task.type == "head":
        repairs = () if found.origin is None else found.origin.repairs
        lines = targets(found.sizes, compared[HOME], found.timing, repairs)
        details["targets"] = [line.to_dict() for line in lines]
    names = [n for n in compared[HOME]["models"] if n != found.subject]
    result = Result.of(
        "evaluate",
        config,
        started=started,
        split="test",
        metrics={d: _means(told["models"][found.subject]) for d, told in compared.items()},
        baselines={n: _of_domains(compared, n) for n in names},
        rows=sum(told["samples"] for told in compared.values()),
        peak_memory_bytes=found.peak_memory_bytes,
        details=details,
    )
    return result, report(config, result), markdown(config, result)


_RANDOM = Random().type


def _means(metrics: Json) -> dict[str, float | None]:
    return {name: interval["mean"] for name, interval in metrics.items()}


def _of_domains(compared: Mapping[str, Json], name: str) -> Metrics:
    return {domain: _means(told["models"][name]) for domain, told in compared.items()}
