"""Bad input, through the console entry: configurations and logs; exit code 2, one readable
message, nothing half-written.

Each test is one line of the list that the product promises; run with `-rP` to read the messages.
"""

import pyarrow.parquet as pq
import pytest

from .bad_input import log_of, row
from .console import SMOKE

# --- Configuration ---------------------------------------------------------------------------


def test_an_unknown_config_key(refused, tmp_path):
    file = tmp_path / "typo.yaml"
    file.write_text(SMOKE.read_text().replace("epochs: 2", "epochss: 2"))
    for verb in ("prepare", "train"):
        says = [f"{file} is not a valid InfnetConfig", "train.epochss", "did you mean 'epochs'?"]
        refused(verb, file, says=says)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.epochs=many", ["train.epochs", "valid integer", "found 'many'"]),
        ("train.epochs=true", ["train.epochs", "valid integer", "found True"]),
        ("train.epochs=1.5", ["train.epochs", "valid integer", "found 1.5"]),
        ("model=infnet", ["model", "found 'infnet'"]),
        ("features.user.type=categoric", ["features.user", "'categoric'", "did you mean 'categorical'?"]),
        ("compute.workers=2", ["train.strategy", "single is one worker", "2", "use ddp or deepspeed"]),
        ("train.batch_size=250", ["batch_size (250)", "multiple of", "nearest is 248"]),
    ],
)  # fmt: skip
def test_a_wrong_type_or_value(refused, override, says):
    refused("train", SMOKE, "--set", override, says=says)


# --- The log ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("features.user.column=usr_id", ["'usr_id'", "features.user", "nearest is 'user_id'"]),
        ("tasks.click.label=is_clik", ["'is_clik'", "tasks.click", "nearest is 'is_click'"]),
        ("data.split={type: column, column: part}", ["data.split.column", "'part'", "is_click"]),
        ("features.duration.column=p_click", ["features.duration", "'p_click'", "holds the answer"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["prepare", "train"])
def test_a_missing_column(refused, verb, override, says):
    refused(verb, SMOKE, "--set", override, says=says)


@pytest.mark.ray
@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_a_missing_column_of_a_file_to_score(refused, ray_session, run, test_log, tmp_path, verb):
    file = tmp_path / "rows.parquet"
    pq.write_table(test_log.drop_columns(["topic"]), file)
    refused(verb, run, "--data", file, says=[str(file), "'topic'", "Columns there: user_id"])


@pytest.mark.parametrize("verb", ["prepare", "train"])
def test_an_empty_log(refused, tmp_path, verb):
    config = log_of(tmp_path)
    refused(verb, config, says=[str(tmp_path / "log.csv"), "empty", "at least one row"])
    (tmp_path / "log.csv").write_bytes(b"")
    refused(verb, config, says=[str(tmp_path / "log.csv"), "empty"])
    (tmp_path / "log.csv").unlink()
    refused(verb, config, says=[str(tmp_path / "log.csv")])


@pytest.mark.ray
@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_an_empty_file_to_score(refused, ray_session, run, test_log, tmp_path, verb):
    file = tmp_path / "rows.parquet"
    pq.write_table(test_log.slice(0, 0), file)
    refused(verb, run, "--data", file, says=[str(file), "empty"])


@pytest.mark.ray
@pytest.mark.parametrize("verb", ["prepare", "train"])
def test_bad_rows_above_the_share(refused, ray_session, tmp_path, verb):
    rows = [row(n, "yesterday" if n % 10 == 3 else None) for n in range(100)]
    says = ["10 of 100 rows (10.0%)", "data.max_bad_share (1.0%)", "log.csv", "yesterday", "raise"]
    refused(verb, log_of(tmp_path, *rows), says=says)


@pytest.mark.ray
@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_bad_rows_of_a_file_above_the_share(refused, ray_session, run, test_log, tmp_path, verb):
    users = test_log["user_id"].to_pylist()
    users[::10] = [None] * len(users[::10])
    column = test_log.column_names.index("user_id")
    bad = test_log.set_column(column, "user_id", [users])
    pq.write_table(bad, tmp_path / "rows.parquet")
    says = ["58 of 571 rows", "data.max_bad_share (0.01)", "user_id", "raise data.max_bad_share"]
    refused(verb, run, "--data", tmp_path / "rows.parquet", says=says)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.split.valid_from=2022-04-21", ["data.split", "2022-04-21", "before test_from (2022-04-20)", "overlap"]),
        ("data.split.valid_from=2022-04-20", ["data.split", "valid_from (2022-04-20)", "overlap"]),
        ("data.split={type: hash, column: user_id, valid: 0.5, test: 0.5}", ["data.split", "valid (0.5)", "below 1"]),
        ("data.split.valid_from=soon", ["data.split.valid_from", "ISO date", "'soon'"]),
    ],
)  # fmt: skip
def test_an_overlapping_split(refused, override, says):
    refused("prepare", SMOKE, "--set", override, says=says)


def test_a_split_with_an_empty_part(refused, tmp_path):
    rows = [row(n) for n in range(70)]
    says = [
        "data.split leaves valid and test empty",
        "2024-01-07",
        'valid_from: "2024-01-09"',
        "move the cuts",
    ]
    refused("prepare", log_of(tmp_path, *rows), says=says)
