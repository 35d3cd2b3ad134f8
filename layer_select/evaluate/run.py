"""`layer-select evaluate`: the student beside the full model and its rivals, on Ray Train.

    out/table.md               the table as text
        ranks.safetensors      what each model did on each test sample (`<domain>/<model>/<column>`)
        result.json  report.html  manifest.json

While it runs, what is finished stands beside it in `<out>.evaluating/`; SASRec and healed rivals
are kept in the cache by what they are made from. A second call goes on there.
"""

import time

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from layer_select.config import LayerSelectConfig
from layer_select.evaluate import sasrec_run
from layer_select.evaluate.config import SasRec
from layer_select.evaluate.contestants import (
    FULL,
    STUDENT,
    Student,
    check,
    contestants,
    layer_sets,
    open_student,
)
from layer_select.evaluate.finish import Found, finish
from layer_select.evaluate.worker import HOME, TRANSFER, file_of, on_worker, transfer_task
from layer_select.keys import heads_of
from layer_select.opened import Opened, open_inputs, with_model
from layer_select.places import data_root
from layer_select.task.run import RecommendationTask
from rayrun import manifest, storage
from rayrun.config import ConfigError, digest_of
from rayrun.metrics import Result
from rayrun.ray.session import session
from rayrun.ray.train import run as run_on_ray
from rayrun.replacing import refuse_strangers

KIND = "layer_select.evaluation"
FORMAT_VERSION = 1
CACHE = "cache"
"""Of what is kept between runs, beside the run's directory."""
MAX_FAILURES = 2
"""Worker deaths survived; finished models are kept."""
RANKS = "ranks.safetensors"


def evaluate(config: LayerSelectConfig, out: str) -> Result:
    """Compare the student with the full model and the rivals of `config.evaluate`.

    On the test samples of `config.data`, which neither training nor selection saw, and those of
    `evaluate.data`, another domain, where one is named. Without `inputs.student` the full model is
    what is compared with the rivals. A call that was interrupted is continued by the same call; one
    that finds the same evaluation at `out` returns its result.

    Args:
        config: the whole run; `inputs.model` and `inputs.student`; `inputs.scores` for the rival
            block_influence.
        out: output directory, a path or `s3://` URI that all workers reach.

    Returns:
        `result.json`: metrics of the student by domain, those of the others under `baselines`;
        under `details` intervals, paired differences, what is retained, sizes, timing, and the
        targets, each met or not.

    Raises:
        ConfigError: bad configuration, model, student, scores or data; or `out` holds something
            else.
        RuntimeError: workers failed too often; the same call continues.
    """
    started = time.monotonic()
    out = storage.absolute(out)
    if config.model is not None or config.inputs.model:
        _begun(config)  # what it refuses, it refuses before Ray starts
    with storage.claim(out):
        refuse_strangers(out)
        with session(config.compute):
            config = with_model(config, out)
            opened, student, domains = _begun(config)
            key = key_of(config, opened, student, domains)
            if manifest.stands(out, kind=KIND, key=key):
                return Result.read(out)
            root = cache_of(config, out)
            state = f"{out}.evaluating"
            models = contestants(
                config, opened, student, root=root, teacher=storage.join(state, "teacher")
            )
            told = run_on_ray(
                on_worker,
                {
                    "config": config.to_dict(),
                    "models": [model.to_dict() for model in models],
                    "domains": {name: task.sequences.digest for name, task in domains.items()},
                    "sasrec": _sasrec(config, domains, root),
                    "task": opened.digests["task"],
                    "infnet_data": data_root(),
                    "state": storage.join(state, key.removeprefix("sha256:")[:16]),
                },
                compute=config.compute,
                storage_path=storage.join(state, "ray"),
                name=key.removeprefix("sha256:")[:16],
                max_failures=MAX_FAILURES,
                title="evaluating",
            )
        columns = {
            domain: {
                name: load_tensors(storage.read_bytes(file_of(told["state"], domain, name)))
                for name in told["models"][domain]
            }
            for domain in domains
        }
        found = Found(
            models=models,
            tasks=domains,
            columns=columns,
            sizes=told["sizes"],
            timing=told["timing"],
            origin=None if student is None else student.origin,
            subject=FULL if student is None else STUDENT,
            peak_memory_bytes=told["peak_memory_bytes"],
        )
        result, page, table = finish(config, found, started=started)
        inputs = dict(opened.digests)
        if student is not None:
            inputs["student"] = student.checkpoint.digest
        with storage.output(out) as staging:
            flat = {
                f"{domain}/{name}/{column}": values
                for domain, of_models in columns.items()
                for name, of_model in of_models.items()
                for column, values in of_model.items()
            }
            (staging / RANKS).write_bytes(save_tensors(flat))
            (staging / "table.md").write_text(table, encoding="utf-8")
            result.write(staging)
            page.write(staging / "report.html")
            manifest.write(
                staging,
                kind=KIND,
                format_version=FORMAT_VERSION,
                config=config,
                inputs=inputs,
                info={"key": key, "targets": result.details.get("targets", [])},
                exclude=("table.md",),  # it tells of times
            )
        storage.remove(state)
    return result


def plan(config: LayerSelectConfig, out: str) -> str:
    """What `--dry-run` prints: models, rivals with their layers, samples, timing.

    Raises:
        ConfigError: as `evaluate`.
    """
    lines = [f"# {config.digest(['data', 'task', 'evaluate'])}", config.to_yaml()]
    lines.append(f"rivals: {', '.join(rival.type for rival in config.evaluate.rivals)}")
    if config.model is None and not config.inputs.model:
        lines.append("model: none is named; evaluate makes the one of pretrain: first, or finds it")
        return "\n".join(lines)
    opened, student, domains = _begun(config)
    lines.append(f"model: {opened.checkpoint.where}")
    if student is not None:
        lines.append(f"student: {student.place}, {student.num_layers} layers")
        for name, layers, heal in layer_sets(config, opened, student):
            lines.append(f"{name}: layers {list(layers)}, {'healed' if heal else 'as they are'}")
    for name, task in domains.items():
        lines.append(f"{name}: {len(task.samples['test'])} test samples of {task.sequences.name}")
    return "\n".join(lines)


def key_of(
    config: LayerSelectConfig,
    opened: Opened,
    student: Student | None,
    domains: dict[str, RecommendationTask],
) -> str:
    """Digest of all that decides the numbers."""
    return digest_of(
        [
            FORMAT_VERSION,
            opened.digests,
            None if student is None else [student.checkpoint.digest, heads_of(student.checkpoint)],
            {name: task.digest for name, task in domains.items()},
            config.digest(["evaluate", "heal", "score.dtype"]),
            [] if student is None else [s[:2] for s in layer_sets(config, opened, student)],
        ]
    )


def cache_of(config: LayerSelectConfig, out: str) -> str:
    """Folder of what is kept between runs."""
    if config.cache:
        return storage.absolute(config.cache)
    parent, _, _ = out.rstrip("/").rpartition("/")
    return storage.join(parent, CACHE)


def _begun(
    config: LayerSelectConfig,
) -> tuple[Opened, Student | None, dict[str, RecommendationTask]]:
    """The full model, the student, and the task on each domain, all fit for the table."""
    if not config.task.test:
        raise ConfigError(
            "evaluate needs test samples, but task.test is 0; set task.test to their number "
            "(--set task.test=512)"
        )
    opened = open_inputs(config)
    student = open_student(config, opened)
    check(config, student)
    if student is not None:
        layer_sets(config, opened, student)
    domains = {HOME: opened.task}
    if config.evaluate.data is not None:
        domains[TRANSFER] = transfer_task(config, opened)
    return opened, student, domains


def _sasrec(
    config: LayerSelectConfig, domains: dict[str, RecommendationTask], root: str
) -> dict[str, str]:
    """Domain → where its SASRec stands."""
    found: dict[str, str] = {}
    for rival in config.evaluate.rivals:
        if isinstance(rival, SasRec):
            for name, task in domains.items():
                data = config.data if name == HOME else config.evaluate.data
                assert data is not None
                found[name] = sasrec_run.trained(config, rival, data, task.sequences, root)
    return found
