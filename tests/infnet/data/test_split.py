import datetime

import numpy as np
import pyarrow as pa
import pytest

from infnet.config import ColumnSplit, HashSplit, TimeSplit
from infnet.data.split import Splitter, about_unit, as_written
from rayrun.config import ConfigError
from rayrun.data.columns import Columns, TimeColumn


def codes(split, rows, columns=None):
    columns = Columns() if columns is None else columns
    return Splitter(split, columns, rows.schema).codes(rows).tolist()


def times(*values, unit="ms"):
    return pa.table({"t": values}), Columns(time=TimeColumn(column="t", unit=unit))


def test_a_row_at_the_cut_belongs_to_the_later_split():
    rows, columns = times(9, 10, 19, 20, 21)
    split = TimeSplit(valid_from="10", test_from="20")
    assert codes(split, rows, columns) == [0, 1, 1, 2, 2]


def test_cuts_are_in_the_unit_of_the_time_column():
    rows, columns = times(9, 10, 20, unit="s")
    assert codes(TimeSplit(valid_from="10", test_from="20"), rows, columns) == [0, 1, 2]


def test_an_iso_cut_is_utc_unless_it_says_otherwise():
    midnight = 1_650_326_400_000  # 2022-04-19T00:00Z
    rows, columns = times(midnight - 1, midnight, midnight - 8 * 3_600_000)
    split = TimeSplit(valid_from="2022-04-19", test_from="2022-05-01")
    assert codes(split, rows, columns) == [0, 1, 0]
    in_china = TimeSplit(valid_from="2022-04-19T00:00+08:00", test_from="2022-05-01")
    assert codes(in_china, rows, columns) == [1, 1, 1]


def test_a_calendar_column_of_numbers_is_cut_by_its_numbers():
    rows = pa.table({"date": [20220418, 20220419, 20220420, None]})
    split = TimeSplit(column="date", valid_from="20220419", test_from="20220420")
    assert codes(split, rows) == [0, 1, 2, -1]


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["2022-04-18", "2022-04-19T12:00", "2022-04-20"]),
        pa.array([19100, 19101, 19102], pa.int32()).cast(pa.date32()),
    ],
)
def test_dates_and_text_are_cut_by_moment(values):
    split = TimeSplit(column="day", valid_from="2022-04-19", test_from="2022-04-20")
    assert codes(split, pa.table({"day": values})) == [0, 1, 2]


def test_a_column_names_the_split():
    rows = pa.table({"split": ["train", " Test ", "valid", "other", None]})
    assert codes(ColumnSplit(), rows) == [0, 2, 1, -1, -1]


def test_a_hash_split_keeps_rows_of_one_value_together_and_has_the_shares_asked_for():
    keys = np.repeat(np.arange(5000), 2)
    found = np.array(codes(HashSplit(column="k", valid=0.1, test=0.2), pa.table({"k": keys})))
    assert (found[::2] == found[1::2]).all()
    shares = np.bincount(found) / len(found)
    np.testing.assert_allclose(shares, [0.7, 0.1, 0.2], atol=4 * np.sqrt(0.25 / 5000))
    other = np.array(codes(HashSplit(column="k", seed=1), pa.table({"k": keys})))
    assert (found != other).any()


@pytest.mark.parametrize(
    ("split", "columns", "message"),
    [
        (TimeSplit(valid_from="1", test_from="2"), Columns(), r"the log has none"),
        (
            TimeSplit(column="t", valid_from="2", test_from="2"),
            Columns(),
            r"valid_from \(2\) must be before test_from",
        ),
        (
            TimeSplit(column="t", valid_from="May", test_from="June"),
            Columns(),
            r"t holds numbers, so a number is needed, found 'May'",
        ),
        (
            TimeSplit(valid_from="May", test_from="June"),
            Columns(time=TimeColumn(column="t")),
            r"valid_from must be an ISO date",
        ),
        (ColumnSplit(column="fold"), Columns(), r"no column 'fold'"),
        (HashSplit(column="t", valid=0.5, test=0.5), Columns(), r"together below 1"),
    ],
)
def test_a_split_that_cannot_be_is_refused(split, columns, message):
    with pytest.raises(ConfigError, match=message):
        Splitter(split, columns, pa.schema([("t", pa.int64())]))


def test_a_split_is_told_as_it_stands_in_yaml():
    split = TimeSplit(valid_from="2022-04-19", test_from="2022-04-20")
    assert as_written(split) == '{type: time, valid_from: "2022-04-19", test_from: "2022-04-20"}'


@pytest.mark.parametrize(("year", "strange"), [(1970, True), (1999, False), (2026, False)])
def test_times_of_a_wrong_unit_are_told(year, strange):
    at = int(datetime.datetime(year, 3, 1, tzinfo=datetime.UTC).timestamp() * 1000)
    columns = Columns(time=TimeColumn(column="t", unit="ms"))
    said = about_unit(columns, [(at, at), None])
    assert ("data.source.columns.time.unit (ms)" in said) == strange
    assert about_unit(Columns(), [(at, at)]) == ""
