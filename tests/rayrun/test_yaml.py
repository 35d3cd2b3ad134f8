"""YAML 1.2: scalars, keys that stand twice, files; what is written is read back."""

import pytest

from rayrun.config import ConfigError, load, parse_yaml
from tests.rayrun.written_run import Run, run, run_of

# --- YAML 1.2 --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.5e+1", -5.0),
        ("+1", 1),
        ("0o17", 15),
        ("0x1F", 31),
        ("017", 17),
        ("1_000", "1_000"),
        ("12:30:00", "12:30:00"),
        ("2022-05-04", "2022-05-04"),
        ("=", "="),
        ("<<", "<<"),
        ("~", None),
        ("null", None),
        ("", None),
        ("'1'", "1"),
        ("0b1", "0b1"),
        ("[1, no]", [1, "no"]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    found = parse_yaml(text, where="test")
    assert found == value
    assert type(found) is type(value)


def test_infinity_and_nan_are_numbers_of_yaml_but_no_values_of_a_config(tmp_path):
    assert parse_yaml("[-.inf, .NaN]", where="test")[0] == float("-inf")
    with pytest.raises(ConfigError, match=r"lr: Input should be a finite number; found nan"):
        run_of("{name: a, lr: .nan}", folder=tmp_path)


def test_a_key_that_stands_twice_is_an_error_with_its_line():
    with pytest.raises(ConfigError, match=r"run.yaml, line 3, .*'a' stands twice"):
        parse_yaml("a: 1\nb: 2\na: 3\n", where="run.yaml")
    with pytest.raises(ConfigError, match="'1' stands twice"):
        parse_yaml("x: {1: a, '1': b}", where="run.yaml")


@pytest.mark.parametrize(
    "text",
    ["a: [1", "a: 'b", "a: b: c", "a: !!python/object x", "\x00", "a: 1\n---\nb: 2", "? [a]\n: 1"],
)
def test_text_that_is_no_yaml_is_one_line_naming_the_file(text):
    with pytest.raises(ConfigError, match=r"run.yaml.* is not valid YAML: ") as caught:
        parse_yaml(text, where="run.yaml")
    assert "\n" not in str(caught.value)


def test_a_mapping_that_holds_itself_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="must hold plain data"):
        run_of("name: a\nrivals: &x\n  r: *x\n", folder=tmp_path)


# --- Files -----------------------------------------------------------------------------------


def test_a_missing_file_a_directory_and_bytes_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file .*nowhere.yaml; check the path"):
        load(Run, tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="is a directory, a YAML file is needed"):
        load(Run, tmp_path)
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load(Run, tmp_path / "x.yaml")


def test_a_file_that_is_no_mapping_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="must hold a mapping of keys to values, found list"):
        run_of("- a\n", folder=tmp_path)


def test_an_empty_file_misses_what_is_required(tmp_path):
    with pytest.raises(ConfigError, match="name: Field required"):
        run_of("", folder=tmp_path)


# --- Round trip ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["1e-3", "no", "null", "~", "", "0x1f", "0o17", "1_000", "12:30", "2020-01-01", "a: b", "- x",
     "# c", " lead", "trail ", "=", "<<", "two\nlines", "1.", "-.5", ".inf", "\t", "\x07", "@x",
     "%", "`", "\x85", "\u2028", "\r\n", "中文", "\U0001f600", "'", '"', "true", "{a}", "[a]", "*a", "&a", "!a"],
)  # fmt: skip
def test_what_is_written_is_read_back_equal(text, tmp_path):
    before = run(name=text, source={"path": "p", "columns": {text: text, "x" + text: "y"}})
    assert run_of(before.to_yaml(), folder=tmp_path) == before


@pytest.mark.parametrize("number", [1e-7, 1e22, 0.1, 1.0, -0.0, 1e-300, 123456789.123456789])
def test_numbers_are_read_back_to_the_last_bit(number, tmp_path):
    assert repr(run_of(run(lr=number).to_yaml(), folder=tmp_path).lr) == repr(number)
