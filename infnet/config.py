"""Whole-file configurations of the `infnet` verbs: one class, read from the top like its YAML."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from infnet.baselines import Model
from infnet.features import Feature
from infnet.tasks import Task, parents_first
from infnet.train.arithmetic import batch_arithmetic
from infnet.tune.config import Tune
from infnet.weighting import FixedWeighting, Weighting
from rayrun.config import Config, Place
from rayrun.data.source import Source
from rayrun.ray.compute import Compute
from rayrun.ray.deepspeed import refuse_derived
from rayrun.ray.serve_options import ServeOptions
from rayrun.sinks import Sink


class TimeSplit(Config):
    """Rows before `valid_from` train, rows from `test_from` on test, those between validate."""

    type: Literal["time"] = "time"
    valid_from: str
    """ISO date or date-time (UTC unless it says otherwise), or an integer in the unit of the
    column."""
    test_from: str
    column: str = ""
    """Another column to cut by (a calendar day, say `date: 20220419`); empty: the time column."""


class ColumnSplit(Config):
    """A column says it: `train`, `valid` or `test`."""

    type: Literal["column"] = "column"
    column: str = "split"


class HashSplit(Config):
    """By a stable hash of a column (sets without time); rows of one value stay together."""

    type: Literal["hash"] = "hash"
    column: str
    valid: float = 0.1
    test: float = 0.1
    seed: int = 0


Split = Annotated[TimeSplit | ColumnSplit | HashSplit, Field(discriminator="type")]


class Data(Config):
    """The log: where, how it is split, what may be wrong with it."""

    source: Source
    split: Split
    statistics: Literal["frozen", "rolling"] = "frozen"
    """What a valid or test row may know: nothing after the training period (`frozen`, for headline
    numbers), or every strictly earlier event (`rolling`, a separate table)."""
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """More bad rows than this share fail the run; fewer are quarantined with their reasons."""
    shard_rows: PositiveInt = 65_536
    """Rows of one Parquet shard."""


class Optimizer(Config):
    """Optimizer of the dense parameters."""

    type: Literal["adam", "adamw", "adagrad"] = "adam"
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    """How the learning rates go after the warm-up; that of the embeddings follows in proportion."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rates (that of the embeddings too) rise linearly."""
    clip_norm: NonNegativeFloat = 0.0
    """Largest gradient norm of the dense parameters; 0 switches clipping off."""


class EmbeddingOptimizer(Config):
    """Row-wise optimizer of the embedding tables; only rows of the batch are read or written."""

    type: Literal["adam", "adagrad", "rowwise_adagrad"] = "adam"
    lr: PositiveFloat = 1e-3
    l2: NonNegativeFloat = 0.0
    """L2 penalty on the rows touched by the batch."""


class EarlyStopping(Config):
    """Stop when a validation metric has not improved for `patience` evaluations."""

    metric: str = "auc"
    """Mean over the tasks that have it."""
    patience: PositiveInt = 2
    min_delta: NonNegativeFloat = 0.0


class SingleStrategy(Config):
    """One worker, plain PyTorch."""

    type: Literal["single"] = "single"


class DdpStrategy(Config):
    """Data parallel: dense gradients averaged by DistributedDataParallel."""

    type: Literal["ddp"] = "ddp"


class DeepSpeedStrategy(Config):
    """Data parallel with DeepSpeed ZeRO over the dense parameters; tables stay outside."""

    type: Literal["deepspeed"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] = 1
    offload: Literal["none", "optimizer", "parameters"] = "none"
    deepspeed_extra: dict[str, object] = {}
    """Further DeepSpeed settings; any key that is derived here is refused."""

    @model_validator(mode="after")
    def _settings_agree(self) -> "DeepSpeedStrategy":
        refuse_derived(self.deepspeed_extra)
        needed = {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        if self.zero_stage < needed:
            raise ValueError(
                f"offload: {self.offload} needs zero_stage {needed} or more, "
                f"found {self.zero_stage}"
            )
        return self


Strategy = Annotated[SingleStrategy | DdpStrategy | DeepSpeedStrategy, Field(discriminator="type")]


class Train(Config):
    """How to train."""

    epochs: PositiveInt = 1
    batch_size: int = 4096
    """Rows per optimizer step over all workers."""
    micro_batch_size: int | None = None
    """Rows per forward pass of one worker; absent: batch_size / workers. Must divide exactly."""
    lanes: int = 8
    """Streams the training rows are read in; a multiple of the number of workers. The rows of a
    step depend on it and on the seed, not on the number of workers."""
    shuffle_rows: PositiveInt = 65_536
    """Rows shuffled at a time in each lane."""
    optimizer: Optimizer = Optimizer()
    embeddings: EmbeddingOptimizer = EmbeddingOptimizer()
    weighting: Weighting = FixedWeighting()
    """How the losses of the tasks become one."""
    strategy: Strategy = SingleStrategy()
    precision: Literal["fp32", "bf16"] = "fp32"
    early_stopping: EarlyStopping | None = None
    evaluate_every_steps: NonNegativeInt = 0
    """0: once per epoch."""
    checkpoint_every_steps: NonNegativeInt = 0
    """0: once per epoch."""
    max_failures: NonNegativeInt = 2
    """Worker deaths survived by restarting from the newest checkpoint."""
    seed: int = 0


class Evaluate(Config):
    """What `infnet evaluate` computes beside the metrics of each task."""

    batch_size: PositiveInt = 8192
    bootstrap: NonNegativeInt = 200
    """User-bootstrap replicates behind each 95 % interval."""
    ndcg_at: tuple[PositiveInt, ...] = (5,)
    seed: int = 0


class Compare(Config):
    """What `infnet compare` repeats."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds; every model and rival is trained with each."""
    metrics: tuple[str, ...] = ("auc", "gauc_impressions", "logloss")
    """Metrics of the table; `result.json` has all of them."""

    @model_validator(mode="after")
    def _seeds_differ(self) -> "Compare":
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be at least one, each once, found {list(self.seeds)}")
        return self


class Gate(Config):
    """When a new model may replace the live one."""

    metric: str = "auc"
    """Compared task by task, with a paired interval over users."""
    margin: NonNegativeFloat = 0.0
    """A task blocks the new model if the 95 % interval of (new − live), in the metric's better
    direction, lies wholly below −margin."""


class ScorerServe(ServeOptions):
    """How `infnet serve` and `infnet deploy` serve a bundle."""

    max_candidates: PositiveInt = 100_000
    """Candidates one request may have; more is 422."""
    batch_rows: PositiveInt = 2048
    """Rows scored in one call of the model, over the requests that wait together."""
    mapped_table_bytes: PositiveInt = 1 << 30
    """Embedding tables of this size or more are looked up in a memory map beside the graph; pages
    are given back and rows read from the disk again."""
    mapped_resident_bytes: PositiveInt = 256 << 20
    """What a replica keeps of them in its memory, at most."""


class Inputs(Config):
    """Where a verb finds what an earlier verb made. Never part of the digest."""

    data: Annotated[str, Place] = ""
    """Dataset directory of `infnet prepare`. Empty: train prepares first, into a cache keyed by
    content."""
    checkpoint: Annotated[str, Place] = ""
    """Run directory of `infnet train`."""
    evaluation: Annotated[str, Place] = ""
    """Output of `infnet evaluate`: what gate judges; for evaluate, of a model to compare with on
    the same rows, which then stands beside the rivals as `without`."""
    bundle: Annotated[str, Place] = ""
    """Serve bundle of `infnet export`."""


class InfnetConfig(Config):
    """One run of the multitask scorer, from the raw log to the evaluated model."""

    name: str
    data: Data
    features: dict[str, Feature]
    tasks: dict[str, Task]
    model: Model
    rivals: dict[str, Model] = {}
    """Baselines trained and evaluated beside the model, on the same rows."""
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    tune: Annotated[Tune, Place] = Tune()
    """What `infnet tune` searches; it changes no result of another verb."""
    compare: Compare = Compare()
    gate: Gate = Gate()
    serve: Annotated[ScorerServe, Place] = ScorerServe()
    """Where and how the model is served; it changes no result."""
    sinks: Annotated[tuple[Sink, ...], Place] = ()
    """Where metric records go besides `metrics.jsonl`."""
    inputs: Inputs = Inputs()
    compute: Compute

    @model_validator(mode="after")
    def _something_to_learn(self) -> "InfnetConfig":
        if not self.features:
            raise ValueError("features: at least one feature is required")
        if not self.tasks:
            raise ValueError("tasks: at least one task is required")
        parents_first(self.tasks)
        return self

    @model_validator(mode="after")
    def _shards_agree(self) -> "InfnetConfig":
        said: dict[str, tuple[str, bool]] = {}
        for name, feature in self.features.items():
            for table, split in feature.split_tables(name).items():
                first, before = said.setdefault(table, (name, split))
                if split != before:
                    raise ValueError(
                        f"features.{name}.shard must equal features.{first}.shard: they share the "
                        f"table {table!r}; set shard: rows for both or for neither"
                    )
        return self

    @property
    def split_tables(self) -> dict[str, str]:
        """Embedding tables that training splits by rows over its workers, and the key of each that
        says so.
        """
        return {
            table: f"features.{name}.shard"
            for name, feature in self.features.items()
            for table, split in feature.split_tables(name).items()
            if split
        }

    @model_validator(mode="after")
    def _batch_divides(self) -> "InfnetConfig":
        workers = self.compute.workers
        if self.train.strategy.type == "single" and workers > 1:
            raise ValueError(
                f"train.strategy: single is one worker, compute.workers is {workers}; "
                "use ddp or deepspeed, or one worker"
            )
        batch_arithmetic(
            batch_size=self.train.batch_size,
            workers=workers,
            micro_batch_size=self.train.micro_batch_size,
            lanes=self.train.lanes,
        )
        return self
