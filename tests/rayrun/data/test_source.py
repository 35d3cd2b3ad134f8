"""What stands behind `data.source`: names, descriptions, and the errors of both."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrun.config import Config, ConfigError, validate
from rayrun.data import kuairand
from rayrun.data.source import Source, open_source


class Data(Config):
    source: Source


def source(value):
    return validate(Data, {"source": value}, where="f.yaml").source


def rows(log):
    return pa.concat_tables(t for f in log.fragments() for t in log.read(f))


def test_a_bare_name_is_short_for_a_named_source():
    short = validate(Data, {"source": "kuairand_pure"}, where="f.yaml")
    long = validate(Data, {"source": {"type": "named", "name": "kuairand_pure"}}, where="f.yaml")
    assert short == long
    assert short.digest() == long.digest()
    assert validate(Data, short.to_dict(), where="again") == short


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "kuairand_pur",
            r"source: no set is registered under 'kuairand_pur'; the nearest is 'kuairand_pure'",
        ),
        ({"type": "named", "name": "x"}, r"source\.name: no set is registered under 'x'"),
        (3, "a source is the name of a registered set"),
        ({"typ": "path"}, r"a source is the name .*\{path: …\}"),
        ({"type": "sql"}, "named | path | simulate"),
        ({"path": "/x", "colums": {}}, r"source\.colums: .*did you mean 'columns'"),
        ({"path": "/x", "columns": {"user": 3}}, r"source\.columns\.user: .*found 3"),
        ({"path": ""}, "path must name a file or a directory"),
        ({"path": "/x", "text": {"quote": "''"}}, "quote must be one character"),
        ({"path": "/x", "text": {"encoding": "utf-9"}}, "encoding must be one that Python knows"),
        ({"path": "/x", "types": {"a": "integer"}}, r"source\.types\.a"),
        ({"type": "simulate", "rows": 0}, r"source\.rows: .*greater than or equal to 1"),
    ],
)
def test_a_wrong_source_is_explained(value, message):
    with pytest.raises(ConfigError, match=message):
        source(value)


def test_the_place_of_a_path_source_is_not_digested():
    one, two = (validate(Data, {"source": {"path": p}}, where="f") for p in ("/a", "s3://b/c"))
    assert one.digest() == two.digest()


def test_without_infnet_data_the_ways_to_get_it_are_listed(monkeypatch):
    monkeypatch.delenv("INFNET_DATA", raising=False)
    with pytest.raises(ConfigError) as error:
        open_source(source("kuairand_pure"))
    for way in ("infnet download kuairand_pure", "{path: DIR", "{type: simulate}"):
        assert way in str(error.value)


def test_a_set_that_is_not_in_infnet_data_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("INFNET_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no movielens_1m_collm in it"):
        open_source(source("movielens_1m_collm"))


LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,"
    "long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
)
USERS = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
    "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,"
    "register_days,register_days_range," + ",".join(f"onehot_feat{i}" for i in range(18)) + "\n"
)
VIDEOS = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,"
    "server_height,music_id,music_type,tag\n"
)


def write_kuairand(place, size):
    """A tiny set with the publisher's file names, columns and quirks."""
    folder = place / f"KuaiRand-{size}" / "data"
    folder.mkdir(parents=True)
    parts = ["_part1", "_part2"] if size == "27K" else [""]
    low = size.lower()
    at = 0
    for period in ("4_08_to_4_21", "4_22_to_5_08"):
        for part in parts:
            line = f"{at % 2},{10 + at % 3},20220408,1200,{1649376000000 + at},1,0,0,0,0,0,1,900,800,0,0,0,0,1\n"
            (folder / f"log_standard_{period}_{low}{part}.csv").write_text(LOG + line)
            at += 1
    line = f"1,10,20220430,1200,{1651290000000},0,0,0,0,0,0,0,1,800,0,0,0,1,1\n"
    (folder / f"log_random_4_22_to_5_08_{low}.csv").write_text(LOG + line)
    user = ',full_active,0,-124,1,5,"(0,10]",0,0,0,0,100,91-180,' + ",".join(
        ["1"] * 4 + [""] + ["2"] * 13
    )
    (folder / f"user_features_{low}.csv").write_text(USERS + f"0{user}\n1{user}\n")
    (folder / f"video_features_basic_{low}.csv").write_text(
        VIDEOS
        + '10,7,NORMAL,2022-04-09,LongImport,0.0,,720,1280,9155697141,,"12,65"\n'
        + "11,8,AD,,ShortImport,0.0,30000.0,720,1280,1,4.0,39\n"
    )
    for part in ["_part1", "_part2"] if size == "27K" else [""]:
        video = 10 if part in ("", "_part1") else 11
        (folder / f"video_features_statistic_{low}{part}.csv").write_text(
            f"video_id,counts,show_cnt\n{video},3,100.5\n"
        )
    return len(parts) * 2


@pytest.mark.parametrize("size", ["Pure", "1K", "27K"])
def test_the_official_files_of_kuairand_are_read(tmp_path, monkeypatch, size):
    name = f"kuairand_{size.lower()}"
    written = write_kuairand(tmp_path / name, size)
    monkeypatch.setenv("INFNET_DATA", str(tmp_path))
    log = open_source(source(name))
    table = rows(log)
    assert table.num_rows == written
    assert table["__bad"].null_count == written, table["__bad"].drop_null().to_pylist()
    first = table.to_pylist()[0]
    assert first["follow_user_num_range"] == "(0,10]"
    assert first["onehot_feat4"] is None
    assert first["is_live_streamer"] == -124
    assert first["tag"] == [12, 65]
    assert first["video_duration"] is None
    assert set(kuairand.LOG_TYPES) <= set(log.schema.names)
    assert "month.show_cnt" not in log.schema.names
    assert log.columns.names() == {"user": "user_id", "item": "video_id", "time": "time_ms"}


def test_random_logs_and_monthly_statistics_of_kuairand_come_on_request(tmp_path, monkeypatch):
    write_kuairand(tmp_path / "kuairand_27k", "27K")
    monkeypatch.setenv("INFNET_DATA", str(tmp_path))
    asked = {"type": "named", "name": "kuairand_27k"}
    table = rows(open_source(source({**asked, "files": "log_*", "tables": ["statistics"]})))
    assert table.num_rows == 5
    assert sum(table["is_rand"].to_pylist()) == 1
    assert set(table["month.show_cnt"].to_pylist()) == {100.5, None}
    with pytest.raises(ConfigError, match="no optional side table 'friends'; known: statistics"):
        open_source(source({**asked, "tables": ["friends"]}))


def test_the_official_files_of_movielens_are_read(tmp_path, monkeypatch):
    folder = tmp_path / "movielens_1m_official" / "ml-1m"
    folder.mkdir(parents=True)
    (folder / "ratings.dat").write_bytes(b"1::1193::5::978300760\n2::661::3::978302109\n")
    (folder / "users.dat").write_bytes(b"1::F::1::10::48067\n2::M::56::16::02460-1234\n")
    (folder / "movies.dat").write_bytes(
        "1193::One Flew Over the Cuckoo's Nest (1975)::Drama\n"
        "661::Misérables, Les (1995)::Drama|Musical\n".encode("latin-1")
    )
    monkeypatch.setenv("INFNET_DATA", str(tmp_path))
    table = rows(open_source(source("movielens_1m_official")))
    last = table.to_pylist()[1]
    assert last["title"] == "Misérables, Les (1995)"
    assert last["genres"] == ["Drama", "Musical"]
    assert last["zip"] == "02460-1234"
    assert table["__bad"].null_count == 2


def test_the_official_csv_of_hillstrom_is_read(tmp_path, monkeypatch):
    folder = tmp_path / "hillstrom_official"
    folder.mkdir()
    (
        folder / "Kevin_Hillstrom_MineThatData_E-MailAnalytics_DataMiningChallenge_2008.03.20.csv"
    ).write_text(
        "recency,history_segment,history,mens,womens,zip_code,newbie,channel,segment,visit,conversion,spend\n"
        "10,2) $100 - $200,142.44,1,0,Surburban,0,Phone,Womens E-Mail,0,0,0\n"
    )
    monkeypatch.setenv("INFNET_DATA", str(tmp_path))
    table = rows(open_source(source("hillstrom_official")))
    assert table.to_pylist()[0]["history_segment"] == "2) $100 - $200"
    assert str(table.schema.field("spend").type) == "double"


def test_the_parquet_samples_keep_histories_and_splits(tmp_path, monkeypatch):
    folder = tmp_path / "movielens_1m_collm"
    folder.mkdir()
    samples = {
        "user_id": pa.array([1, 1], pa.int32()),
        "item_id": pa.array([4, 9], pa.int32()),
        "label": pa.array([1, 0], pa.uint8()),
        "timestamp": [994556598, 994556599],
        "history": pa.array([[], [4]], pa.large_list(pa.int32())),
        "split": pa.array(["train", "valid"]).dictionary_encode(),
    }
    pq.write_table(pa.table(samples), folder / "samples.parquet")
    pq.write_table(pa.table({"item_id": [4], "title": ["Four"]}), folder / "items.parquet")
    monkeypatch.setenv("INFNET_DATA", str(tmp_path))
    table = rows(open_source(source("movielens_1m_collm")))
    assert table["history"].to_pylist() == [[], [4]]
    assert table["split"].to_pylist() == ["train", "valid"]
    assert table["title"].to_pylist() == ["Four", None]


def test_a_log_on_s3_reads_as_on_disk(bucket, tmp_path):
    from rayrun import storage

    storage.write_bytes(storage.join(bucket, "log/a.csv.gz"), gzip.compress(b"u,x\n1,2\n3,4\n"))
    storage.write_bytes(storage.join(bucket, "log/users.csv"), b"u,age\n3,30\n1,10\n")
    pq.write_table(pa.table({"u": [3]}), tmp_path / "a.parquet")
    storage.write_bytes(storage.join(bucket, "p/a.parquet"), (tmp_path / "a.parquet").read_bytes())
    described = {"path": f"{bucket}/log", "tables": [{"path": "users.csv", "key": "u"}]}
    log = open_source(source(described))
    assert rows(log)["age"].to_pylist() == [10, 30]
    assert log.content_digest().startswith("sha256:")
    assert rows(open_source(source({"path": f"{bucket}/p"})))["u"].to_pylist() == [3]
    with pytest.raises(ConfigError, match="none"):
        open_source(source({"path": f"{bucket}/none"}))
