"""`layer-select select`: which layers stay, on Ray Train.

    out/plan.json              layer_select.plan
        result.json  report.html  manifest.json

While it runs, the sets that were measured stand beside it in `<out>.selecting/`: a second call goes
on there.
"""

import json
import time
from contextlib import ExitStack
from dataclasses import replace

import torch

from layer_select.coalitions import Coalitions
from layer_select.config import LayerSelectConfig
from layer_select.decoder import Decoder
from layer_select.families import constraints
from layer_select.opened import Opened, decoder_of, open_inputs, open_on_worker, with_model
from layer_select.places import data_root
from layer_select.plan import FORMAT_VERSION, Plan
from layer_select.scores import Scores
from layer_select.selection.budget import Costs, TimeBudget, layers_within
from layer_select.selection.choose import choose
from layer_select.selection.costs import parameters_of, timed
from layer_select.selection.report import report
from layer_select.selection.room import Room
from layer_select.selection.search import Search
from layer_select.sources.skeleton import skeleton
from layer_select.task.config import Task
from rayrun import manifest, storage
from rayrun.config import Json, digest_of, validate
from rayrun.metrics import Metrics, Result
from rayrun.ray.session import session
from rayrun.ray.train import run as run_on_ray
from rayrun.ray.worker import Worker, peak_memory_of
from rayrun.replacing import refuse_strangers

KIND = "layer_select.plan"
TASK = "next_item"
MAX_FAILURES = 2
"""Worker deaths survived; measured sets are kept."""


def select(config: LayerSelectConfig, out: str) -> Result:
    """Choose the layers that stay, by `config.select`, and compare the choice with others.

    Chosen on the calibration samples, watched on the validation samples, compared on the test
    samples. Without a model, the one that `pretrain:` describes is made first, or taken from the
    cache. A call that was interrupted is continued by the same call; one that finds the same plan
    at `out` returns its result.

    Args:
        config: the whole run; `inputs.scores` for strategies that go by importance.
        out: output directory, a path or `s3://` URI that all workers reach.

    Returns:
        `result.json`: loss and metrics of the chosen layers on the test samples, other sets of
        layers under `baselines`.

    Raises:
        ConfigError: bad configuration, model, scores or data; a budget that no set meets; or `out`
            holds something else.
        RuntimeError: workers failed more than twice; the same call continues.
    """
    started = time.monotonic()
    out = storage.absolute(out)
    with storage.claim(out), ExitStack() as inside:
        refuse_strangers(out)
        if config.model is None and not config.inputs.model:
            inside.enter_context(session(config.compute))  # one Ray for pretraining and selecting
            config = with_model(config, out)
        opened = open_inputs(config)
        scores = scores_of(config, opened)
        _room(config, opened, _costs(opened))  # what it refuses, it refuses before Ray starts
        key = key_of(config, opened, scores)
        if manifest.stands(out, kind=KIND, key=key):
            return Result.read(out)
        state = f"{out}.selecting"
        found = run_on_ray(
            on_worker,
            {
                "config": config.to_dict(),
                "key": key,
                "digests": opened.digests,
                "scores": None if scores is None else scores.to_dict(),
                "infnet_data": data_root(),
                "state": state,
            },
            compute=config.compute,
            storage_path=storage.join(state, "ray"),
            name=key.removeprefix("sha256:")[:16],
            max_failures=MAX_FAILURES,
            title="selecting layers",
        )
        plan = validate(Plan, found["plan"], where="what the workers found")
        inputs = dict(opened.digests)
        if scores is not None:
            inputs["scores"] = digest_of(scores.to_dict())
        result = _finish(config, out, key, opened, plan, inputs, started, found)
        storage.remove(state)
    return result


def on_worker(worker: Worker, argument: Json) -> Json:
    """Select, on one of the workers of a run; all come to the same plan.

    Args:
        worker: of the run; a `SingleWorker` needs no Ray.
        argument: `config`; `key` of the run; `digests` of model and task; `scores`, as data, or
            None; `infnet_data`, for named sources; `state`, the folder of what was measured.

    Returns:
        `plan` and `peak_memory_bytes` of this worker.

    Raises:
        ConfigError: bad input, or the data here are others than where the run was started.
    """
    config, opened = open_on_worker(worker, argument, argument["digests"]["task"])
    decoder = decoder_of(
        opened.checkpoint,
        config.score.execution,
        dtype=config.score.dtype,
        device=worker.device,
        attention="sdpa",
    )
    measured = _Measured(worker, decoder, opened, argument, config.select.cache_bytes)
    costs, times = _costs(opened), {}
    if isinstance(config.select.budget, TimeBudget):
        times = measured.times(config.select.budget.repeats)
        costs = replace(costs, layer_ms=times["layer_ms"], other_ms=times["other_ms"])
    room = _room(config, opened, costs)
    assert room is not None, "times are measured"
    scores = argument["scores"]
    found = None if scores is None else validate(Scores, scores, where="the scores of the run")
    calibration = measured.part("calibration", config.task)
    validation = measured.part("validation", config.task)
    test = measured.part("test", config.task)
    shuffled = None if test is None else measured.part("test", config.task, shuffled=True)
    assert calibration is not None, "task.calibration is at least 1"
    search = Search(
        room,
        calibration,
        validation,
        None if found is None else {key: one.scores for key, one in found.methods.items()},
        None if found is None else found.pairs.get("angular"),
        metric=opened.task.metric,
    )
    budget = {**config.select.budget.to_dict(), "layers": room.keep, **times}
    plan = choose(
        config.select,
        search,
        test=test,
        shuffled=shuffled,
        digests=argument["digests"],
        budget=budget,
    )
    naive = calibration.naive_evaluations
    done, rebuilt = calibration.evaluations, calibration.rebuilt
    cost = {"evaluations": done, "rebuilt": rebuilt, "naive": naive, "ratio": done / max(1, naive)}
    if decoder.streams:
        cost["block_reads"] = calibration.block_reads
    plan = plan.model_copy(update={"cost": cost})
    return {"plan": plan.to_dict(), "peak_memory_bytes": peak_memory_of(worker)}


class _Measured:
    """Measurements of sets of layers on the parts of the task, and of the time they take."""

    def __init__(
        self, worker: Worker, decoder: Decoder, opened: Opened, argument: Json, memory_bytes: int
    ) -> None:
        self._worker, self._decoder, self._opened = worker, decoder, opened
        self._objective = opened.task.objective(decoder)
        self._argument, self._memory = argument, memory_bytes

    def part(self, part: str, task: Task, *, shuffled: bool = False) -> Coalitions | None:
        """None where the task has no samples in this part."""
        if not getattr(task, part):
            return None
        name = f"{part}_shuffled" if shuffled else part
        return Coalitions(
            self._decoder,
            self._objective,
            self._opened.task.batches(part, shuffled_targets=shuffled),  # type: ignore[arg-type]
            self._worker,
            journal=storage.join(self._argument["state"], f"{name}.jsonl"),
            key=f"{self._argument['key']} {name}",
            memory_bytes=self._memory,
        )

    def times(self, repeats: int) -> Json:
        """Rank 0's, the same on all workers; those of an interrupted run stand."""
        place = storage.join(self._argument["state"], "times.json")
        first = self._worker.rank == 0
        missing = torch.tensor(float(first and not storage.exists(place)), dtype=torch.float64)
        needed = bool(self._worker.sum(missing.to(self._worker.device)))
        if needed and (first or self._decoder.together):
            longest = self._opened.task.batches("calibration")[-1]
            found = timed(self._decoder, self._objective, longest, repeats)
            if first:
                storage.write_bytes(place, json.dumps(found).encode())
        self._worker.barrier()
        return json.loads(storage.read_bytes(place))


def scores_of(config: LayerSelectConfig, opened: Opened) -> Scores | None:
    """The scores at `inputs.scores`, of this model and task; None where none are given.

    Raises:
        ConfigError: damaged, or of another model or task.
    """
    if not config.inputs.scores:
        return None
    digests = opened.digests
    return Scores.read(config.inputs.scores, model=digests["model"], task=digests["task"])


def plan(config: LayerSelectConfig, out: str) -> str:
    """What `--dry-run` prints: strategy, budget, constraints and samples.

    Raises:
        ConfigError: bad configuration, model or data, or a budget that no set meets.
    """
    section = config.select
    lines = [f"# {config.digest(['data', 'task', 'select'])}", config.to_yaml()]
    lines.append(f"strategy: {section.strategy.type}, refine: {section.refine}")
    if config.model is None and not config.inputs.model:
        lines.append("model: none is named; select makes the one of pretrain: first, or finds it")
        return "\n".join(lines)
    opened = open_inputs(config)
    scores = scores_of(config, opened)
    lines.append(f"model: {opened.checkpoint.where}")
    room = _room(config, opened, _costs(opened))
    if room is None:
        lines.append(f"budget: {section.budget.to_dict()}, measured on the workers")
    else:
        lines.append(
            f"budget: {room.size} of {room.num_layers} layers, {room.count():,} possible sets; "
            f"protected: {list(room.protected)}"
        )
        rule = "none" if room.rule is None else room.rule.explain()
        lines.append(f"rule of the family: {rule}")
    lines.append(f"scores: {'none' if scores is None else ', '.join(scores.methods)}")
    counts = {name: getattr(config.task, name) for name in ("calibration", "validation", "test")}
    lines.append(f"samples: {', '.join(f'{n} {name}' for name, n in counts.items())}")
    return "\n".join(lines)


def key_of(config: LayerSelectConfig, opened: Opened, scores: Scores | None) -> str:
    """Digest of all that decides the plan."""
    decide = config.digest(["select", "score.dtype", "score.execution"])
    of_scores = None if scores is None else digest_of(scores.to_dict())
    return digest_of([FORMAT_VERSION, opened.digests, decide, of_scores])


def _costs(opened: Opened) -> Costs:
    return parameters_of(skeleton(opened.checkpoint.config))


def _room(config: LayerSelectConfig, opened: Opened, costs: Costs) -> Room | None:
    """The sets to choose from; None while a budget of milliseconds is not measured yet."""
    section = config.select
    if isinstance(section.budget, TimeBudget) and not costs.layer_ms:
        return None
    keep = layers_within(section.budget, costs)
    rule = constraints(opened.checkpoint.config) if section.portable else None
    return Room(len(costs.parameters), keep, section.protect, rule)


def _finish(
    config: LayerSelectConfig,
    out: str,
    key: str,
    opened: Opened,
    plan: Plan,
    inputs: dict[str, str],
    started: float,
    found: Json,
) -> Result:
    result = Result.of(
        "select",
        config,
        started=started,
        split="test" if plan.chosen else "validation",
        metrics=_metrics(plan.chosen) if plan.chosen else {TASK: _watched(plan)},
        baselines={name: _metrics(of_set) for name, of_set in plan.baselines.items()},
        rows=config.task.test,
        peak_memory_bytes=int(found["peak_memory_bytes"]),
        details={"kept": list(plan.kept), "signal": plan.signal, "cost": plan.cost},
    )
    with storage.output(out) as staging:
        plan.write(staging)
        result.write(staging)
        told = opened.task.describe()
        page = report(config, plan, opened.task.metric, told, opened.checkpoint.where)
        page.write(staging / "report.html")
        manifest.write(
            staging,
            kind=KIND,
            format_version=FORMAT_VERSION,
            config=config,
            inputs=inputs,
            info={"key": key, "kept": list(plan.kept)},
        )
    return result


def _watched(plan: Plan) -> dict[str, float | None]:
    steps = [step for step in plan.history if step["kept"] == list(plan.kept)]
    return steps[-1]["metrics"] if steps else {}


def _metrics(of_set: Json) -> Metrics:
    found = {name: interval["mean"] for name, interval in of_set["metrics"].items()}
    return {TASK: {"loss": of_set["loss"], **found}}
