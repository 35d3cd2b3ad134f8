"""Keys of the verbs in a store: all that decides a result enters, and nothing else."""

import json
import os
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from infnet.cli import VERBS
from infnet.config import Evaluate, InfnetConfig, Inputs, ScorerServe
from infnet.train import run as train_run
from rayrun import manifest, store
from rayrun.cli import resolve
from rayrun.config import ConfigError, load
from rayrun.data.source import open_source
from tests.one_process import without_ray_train

SMOKE = Path(__file__).parents[2] / "configs" / "infnet" / "smoke.yaml"
BY_NAME = {verb.name: verb for verb in VERBS}
ROLES = "{user: user_id, item: video_id, time: {column: time_ms, unit: ms}}"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A log in a file, vectors of its topics, and what stands for outputs of earlier verbs."""
    place = tmp_path_factory.mktemp("keys")
    source = load(InfnetConfig, SMOKE, ["data.source.rows=800"]).data.source
    log = open_source(source)
    rows = pa.concat_tables([table for part in log.fragments() for table in log.read(part)])
    names = [n for n in rows.column_names if not n.startswith(("__", "p_"))]
    (place / "log").mkdir()
    csv.write_csv(rows.select(names), place / "log" / "log.csv")
    csv.write_csv(pa.table({"video_id": [0, 1], "price": [3.0, 4.0]}), place / "prices.csv")
    topics = rows["topic"].combine_chunks().unique()
    vectors = pa.array([[float(i), 1.0] for i in range(len(topics))], pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": topics, "vector": vectors}), place / "vectors.parquet")
    for kind in ("dataset", "run", "evaluation", "bundle"):
        artifact(place, kind, "1")
    return place


def artifact(place: Path, kind: str, content: str, *sets: str) -> None:
    shutil.rmtree(place / kind, ignore_errors=True)
    (place / kind).mkdir()
    (place / kind / "file").write_text(content)
    manifest.write(
        place / kind, kind=f"infnet.{kind}", format_version=1, config=config(place, *sets)
    )


def config(place: Path, *sets: str) -> InfnetConfig:
    vectors = f"{{type: pretrained, column: topic, path: {place}/vectors.parquet, width: 2}}"
    tables = f"[{{path: {place}/prices.csv, key: video_id}}]"
    return load(
        InfnetConfig,
        SMOKE,
        [
            f"data.source={{path: {place}/log, columns: {ROLES}, tables: {tables}}}",
            f"features.topic_text={vectors}",
            "rivals={}",
            "train.epochs=1",
            "evaluate.bootstrap=20",
            *sets,
        ],
    )


# --- What changes which key ------------------------------------------------------------------


INPUTS = {
    "prepare": {},
    "train": {"data": "dataset"},
    "train*": {},
    "tune": {"data": "dataset"},
    "tune*": {},
    "evaluate": {"data": "dataset", "checkpoint": "run"},
    "evaluate*": {"checkpoint": "run"},
    "export": {"checkpoint": "run"},
    "gate": {"evaluation": "evaluation"},
}


def keys(place: Path, *sets: str) -> dict[str, str]:
    """The key of every verb; `train*` prepares by itself, `evaluate*` reads a file."""
    whole = config(place, f"serve.live={place}/bundle", *sets)
    found: dict[str, str] = {}
    for name, given in INPUTS.items():
        verb = BY_NAME[name.strip("*")]
        inputs = Inputs(**{key: f"{place}/{kind}" for key, kind in given.items()})
        flags = {flag.name: flag.default for flag in verb.flags}
        if name == "evaluate*":
            flags["data"] = f"{place}/log/log.csv"
        told = whole.model_copy(update={"inputs": inputs})
        found[name] = store.key_of("infnet", verb, told, flags).digest
    return found


@pytest.fixture(scope="module")
def before(made) -> dict[str, str]:
    return keys(made)


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


READ_THE_LOG = {"prepare", "train*", "tune*", "evaluate*", "gate"}
DECIDED_BY_DATA = {"prepare", "train*", "tune*", "evaluate", "evaluate*", "gate"}


@pytest.mark.parametrize(
    ("setting", "verbs"),
    [
        ("name=other", set()),
        ("compute={type: local, workers: 1, num_cpus: 1}", set()),
        ("serve.max_candidates=5", set()),
        ("sinks=[{type: tensorboard, directory: there}]", set()),
        ("compare.seeds=[7]", set()),
        ("evaluate.bootstrap=30", {"evaluate", "evaluate*", "gate"}),
        ("tune.seeds=[7]", {"tune", "tune*"}),
        (
            "evaluate.batch_size=7",
            {"train", "train*", "tune", "tune*", "evaluate", "evaluate*", "gate"},
        ),
        ("gate.margin=0.1", {"gate"}),
        ("train.seed=1", {"train", "train*", "tune", "tune*"}),
        ("model.token_dim=16", {"train", "train*", "tune", "tune*", "evaluate", "evaluate*"}),
        ("rivals={floor: {type: floor}}", {"train", "train*"}),
        ("tasks.click.weight=2.0", {"prepare", "train", "train*", "tune", "tune*"}),
        ("features.topic.dim=16", {"prepare", "train*", "tune*"}),
        ("data.max_bad_share=0.5", DECIDED_BY_DATA),
        ("data.source.columns.item=author_id", DECIDED_BY_DATA),
    ],
)
def test_a_setting_changes_the_keys_of_the_verbs_that_it_decides(made, before, setting, verbs):
    assert changed(before, keys(made, setting)) == verbs


@pytest.mark.parametrize(
    ("file", "verbs"),
    [
        ("log/log.csv", READ_THE_LOG),
        ("prices.csv", READ_THE_LOG),
        ("vectors.parquet", {"prepare", "train*", "tune*"}),
    ],
)
def test_a_byte_changes_the_keys_of_the_verbs_that_read_it(made, before, tmp_path, file, verbs):
    place = tmp_path / "copy"
    shutil.copytree(made, place)
    assert keys(place) == before  # the place is in no key
    told = (place / file).stat()
    content = bytearray((place / file).read_bytes())
    content[-3] ^= 1
    (place / file).write_bytes(content)
    os.utime(place / file, ns=(told.st_atime_ns, told.st_mtime_ns))
    try:
        after = keys(place)
    finally:
        shutil.rmtree(place)
    assert changed(before, after) == verbs


def test_the_place_of_a_registered_set_is_in_no_key_and_its_bytes_are(tmp_path, monkeypatch):
    found: list[dict[str, str]] = []
    for home, score in (("a", "4"), ("b", "4"), ("c", "5")):
        place = tmp_path / home / "movielens_1m_official"
        place.mkdir(parents=True)
        (place / "ratings.dat").write_text(f"1::1193::{score}::978300760\n")
        (place / "users.dat").write_text("1::F::1::10::48067\n")
        (place / "movies.dat").write_text("1193::Heat (1995)::Action\n")
        monkeypatch.setenv("INFNET_DATA", str(tmp_path / home))
        named = load(InfnetConfig, SMOKE, ["data.source=movielens_1m_official"])
        found.append({"prepare": store.key_of("infnet", BY_NAME["prepare"], named, {}).digest})
    assert found[0] == found[1]
    assert found[0] != found[2]


@pytest.mark.parametrize(
    ("kind", "verbs"),
    [
        ("dataset", {"train", "tune", "evaluate"}),
        ("run", {"evaluate", "evaluate*", "export"}),
        ("evaluation", {"gate"}),
        ("bundle", {"gate"}),
    ],
)
def test_another_input_changes_the_keys_of_the_verbs_that_read_it(made, before, kind, verbs):
    artifact(made, kind, "1")  # made again, another day
    same = keys(made)
    artifact(made, kind, "2")
    after = keys(made)
    artifact(made, kind, "1")
    assert same == before
    assert changed(before, after) == verbs


def test_how_a_model_was_trained_is_in_the_keys_of_what_reads_it(made, before):
    artifact(made, "run", "1", "model.token_dim=16")
    after = keys(made)
    artifact(made, "run", "1")
    assert changed(before, after) == {"evaluate", "evaluate*", "export"}


def test_nothing_live_is_another_key_than_something(made, before):
    assert changed(before, keys(made, "serve.live=nowhere")) == {"gate"}
    assert keys(made, "serve.live=nowhere") == keys(made, "serve.live=''")


def test_a_flag_is_in_the_key(made):
    whole = config(made, f"inputs.data={made}/dataset", f"inputs.checkpoint={made}/run")
    test, valid = (
        store.key_of("infnet", BY_NAME["evaluate"], whole, {"split": split, "data": None}).digest
        for split in ("test", "valid")
    )
    assert test != valid


def test_an_input_that_is_no_artifact_is_told_by_its_key(made):
    whole = config(made, f"inputs.checkpoint={made}/log")
    with pytest.raises(ConfigError, match=r"inputs\.checkpoint: .*log is no finished artifact"):
        store.key_of("infnet", BY_NAME["export"], whole, {"rival": ""})


# --- Nothing that is read is missing ---------------------------------------------------------

FREE = {"name", "compute", "sinks", "inputs", "serve"}
"""They decide nothing, or not as such: of `inputs` and `serve` each key is recorded by itself."""

NOTED = {"export": {"gate", "serve.live"}, "gate": {"serve.live"}}
"""Export writes the settings of later verbs down beside the model; what stands at `serve.live` is
in the key of the gate by its content (`infnet.keys.to_gate`)."""


TOLD = "told"
"""Name of the configuration that a verb is given; those in artifacts have another one."""


@pytest.fixture
def reads(monkeypatch) -> set[str]:
    """Keys that code reads, outside of the configuration itself: `model`, `inputs.data`, …"""
    found: set[str] = set()
    name_of = InfnetConfig.__getattribute__

    def watch(cls: type, prefix: str) -> None:
        fields, plain = set(cls.model_fields), cls.__getattribute__

        def recording(self, name):
            if name in fields:
                caller = sys._getframe(1).f_code.co_filename
                own = caller.endswith(("rayrun/config.py", "infnet/config.py"))
                told = cls is not InfnetConfig or name_of(self, "name") == TOLD
                if told and not own and "pydantic" not in caller:
                    found.add(prefix + name)
            return plain(self, name)

        monkeypatch.setattr(cls, "__getattribute__", recording)

    for cls, prefix in (
        (InfnetConfig, ""),
        (Inputs, "inputs."),
        (ScorerServe, "serve."),
        (Evaluate, "evaluate."),
    ):
        watch(cls, prefix)
    return found


def not_in_the_key(verb: str, reads: set[str]) -> set[str]:
    """Of what was read, what is in no part of the key."""
    said = BY_NAME[verb]
    known = {*FREE, *NOTED.get(verb, ()), *(said.sections or ())}
    known |= {f"inputs.{name}" for name in said.inputs or ()}
    whole = {name for name in known if "." not in name} - {"inputs", "serve"}
    on_the_way = {name.partition(".")[0] for name in known}  # `evaluate`, to `evaluate.batch_size`
    return {n for n in reads - known - on_the_way if n.partition(".")[0] not in whole}


@pytest.mark.ray
@pytest.mark.slow
def test_every_verb_reads_only_what_is_in_its_key(made, reads, tmp_path, monkeypatch):
    from rayrun.ray.compute import LocalCompute
    from rayrun.ray.session import session

    def out(name: str) -> str:
        return str(tmp_path / name)

    def run(verb: str, *sets: str, to: str = "") -> set[str]:
        floor = "model={type: floor}"  # of a model no more is read than `model` as a whole
        resolve(BY_NAME[verb].run)(config(made, f"name={TOLD}", floor, *sets), out(to or verb))
        found = not_in_the_key(verb, reads)
        seen[verb] = {*reads}
        reads.clear()
        for place in tmp_path.glob(f"{to or verb}/**/manifest.json"):
            place.write_text(place.read_text().replace(f'"{TOLD}"', '"earlier"'))
        return found

    seen: dict[str, set[str]] = {}
    without_ray_train(monkeypatch, train_run)  # here one can see what the loop reads
    with session(LocalCompute(num_cpus=2, object_store_bytes=200_000_000)):
        assert run("prepare") == set()
        assert run("train", data := f"inputs.data={out('prepare')}") == set()
    checkpoint = f"inputs.checkpoint={out('train')}"
    assert run("evaluate", data, checkpoint) == set()
    assert run("export", checkpoint) == set()
    raw = manifest.read_raw(out("export"))  # as if of another checkpoint: it has to be compared
    raw["info"]["checkpoint"] = "sha256:0"
    (tmp_path / "export/manifest.json").write_text(json.dumps(raw))
    new = f"inputs.evaluation={out('evaluate')}"
    assert run("gate", new, data, f"serve.live={out('export')}") == set()
    assert run("gate", new, f"serve.live={out('export')}", to="gate from the log") == set()
    assert {"train", "model", "tasks", "evaluate.batch_size"} <= seen["train"]  # it does see
    assert {"data", "evaluate", "gate", "inputs.evaluation", "serve.live"} <= seen["gate"]
