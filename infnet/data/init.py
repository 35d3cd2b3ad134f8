"""`infnet init FILE`: read a log and write a commented configuration to start from.

Everything in it is a guess from names and values, and says so: the comments tell what to check.
"""

import datetime
import itertools
import json
import os
import re
from pathlib import PurePosixPath

import pyarrow as pa

from infnet.config import InfnetConfig
from infnet.data.survey import TRUTH, Facts, Survey, survey
from rayrun import storage
from rayrun.config import ConfigError, parse_yaml, validate
from rayrun.data import listing
from rayrun.data.source import PathSource, open_source

SNIFF_BYTES = 1 << 20


def init_verb(out: str, file: str) -> str:
    """The verb `infnet init FILE [--out FILE.yaml | DIR]`; without `--out`, ./NAME.yaml."""
    name = _plain(PurePosixPath(file.rstrip("/")).name.split(".")[0]) or "log"
    target = out if out.endswith((".yaml", ".yml")) else os.path.join(out, f"{name}.yaml")
    if storage.exists(target):
        raise ConfigError(f"{target} is there already; name another with --out, or remove it")
    init(file, target)
    return f"{target} written; check the lines marked `?`, then: infnet train {target} --dry-run"


def init(file: str, out: str) -> str:
    """Write a valid, commented configuration for a CSV, Parquet or JSON lines log to `out`.

    Guessed by names and values of the first 200,000 rows: roles, the unit of time, labels (0/1
    columns with the name of an action, ratings, amounts), feature types, and a split by time if
    there is time, else by a hash.

    Args:
        file: path or URI of a file or a directory of files.
        out: the YAML file to write, path or URI.

    Returns:
        The text written.

    Raises:
        ConfigError: the log cannot be read, or nothing in it looks like a label.
    """
    text_lines = _sniff(file)
    source = validate(
        PathSource,
        {"path": file, **({"text": dict(text_lines)} if text_lines else {})},
        where=file,
    )
    log = open_source(source)
    seen = survey(log)
    name = _plain(PurePosixPath(file.rstrip("/")).name.split(".")[0]) or "log"
    text = "\n".join(
        [
            *_head(file, name, seen),
            *_data(file, text_lines, seen),
            *_tasks(file, seen),
            *_features(seen),
            *_rest(seen),
        ]
    )
    validate(InfnetConfig, parse_yaml(text, where=out), where=out)
    storage.write_bytes(out, text.encode())
    return text


def _sniff(file: str) -> dict[str, str]:
    """Delimiter and encoding, judged by the first megabyte, where they are not the defaults."""
    first = next(iter(listing.list_files(file)), None)
    if first is None or listing.format_of(first.name, "auto") != "csv":
        return {}
    with listing.open_stream(first.uri) as stream:
        start = stream.read(SNIFF_BYTES)
    found: dict[str, str] = {}
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 4:  # else only the last character is cut in two
            found["encoding"] = "latin-1"
        text = start.decode("latin-1")
    line = text.split("\n", 1)[0]
    usual = "\t" if ".tsv" in first.name.lower() else ","
    best = max((usual, ",", "\t", ";", "|"), key=line.count)
    if best != usual and line.count(best):
        found["delimiter"] = best
    return found


def _head(file: str, name: str, seen: Survey) -> list[str]:
    looked = f"all {seen.rows:,}" if seen.whole else f"the first {seen.rows:,}"
    lines = [
        f"# Written by `infnet init {file}` after a look at {looked} rows.",
        "# Everything here is a guess from names and values. Check the lines marked `?`, then:",
        "#   infnet train THIS_FILE --dry-run     shows the plan and finds mistakes",
        "#   infnet train THIS_FILE               prepares, trains and writes a report",
    ]
    if seen.bad:
        reason = seen.sample.column("__bad").drop_null()[0].as_py()
        lines.append(
            f"# {seen.bad:,} of these rows are bad and will be set aside; the first: {reason}"
        )
    return [*lines, f"name: {_scalar(name)}", ""]


def _data(file: str, text: dict[str, str], seen: Survey) -> list[str]:
    lines = ["data:", "  source:", f"    path: {_scalar(file)}"]
    if text:
        inside = ", ".join(f"{k}: {_scalar(v)}" for k, v in text.items())
        lines.append(f"    text: {{{inside}}}  # ? seen in the first lines")
    roles: list[str] = []
    if seen.user:
        roles.append(f"      user: {_scalar(seen.user)}  # ? whose behaviour a row is")
    if seen.item:
        roles.append(f"      item: {_scalar(seen.item)}  # ? what was shown")
    if seen.time:
        column = _scalar(seen.time.column)
        roles.append(
            f"      time: {{column: {column}, unit: {seen.time.unit}}}  # ? when; s, ms, us or iso"
        )
    if seen.request_id:
        roles.append(f"      request_id: {_scalar(seen.request_id)}  # ? rows shown together")
    lines += ["    columns:", *roles] if roles else []
    lacking = [r for r in ("user", "item", "time") if getattr(seen, r) is None]
    if lacking:
        lines.append(
            f"    # not found: {', '.join(lacking)}. "
            "If a column has this role, name it under columns."
        )
    return [*lines, *_split(seen), ""]


def _split(seen: Survey) -> list[str]:
    if "split" in seen.columns:
        values = set(seen.sample.column("split").unique().to_pylist())
        if {"train", "valid", "test"} <= values:
            return [
                "  split: {type: column, column: split}  # the log says it: train, valid, test",
            ]
    if seen.time and seen.cuts:
        valid, test = (_iso(cut) for cut in seen.cuts)
        return [
            "  # The past trains, the future tests: about 80 / 10 / 10 % of the rows. What happens",
            "  # after valid_from informs no vocabulary, statistic or history.",
            f'  split: {{type: time, valid_from: "{valid}", test_from: "{test}"}}  # ?',
        ]
    column = (
        seen.user
        or max(
            seen.columns.values(), key=lambda f: f.distinct if f.kind in ("name", "number") else 0
        ).name
    )
    why = "one user's rows stay together" if seen.user else "the column with the most values"
    return [
        f"  # Without time: by a stable hash of a column ({why}).",
        f"  split: {{type: hash, column: {_scalar(column)}, valid: 0.1, test: 0.1}}  # ?",
    ]


def _labels(seen: Survey) -> list[Facts]:
    return [f for f in seen.columns.values() if f.kind in ("label", "rating", "amount")]


def _tasks(file: str, seen: Survey) -> list[str]:
    lines = [
        "# What is predicted. A column known only after the row was shown is a task or nothing,",
        "# never a feature.",
        "tasks:",
    ]
    keys = _task_keys(seen)
    for fact in _labels(seen):
        key = f"  {keys[fact.name]}:"
        column = _scalar(fact.name)
        if fact.kind == "label":
            rate = f"{100 * (1 - fact.zeros):.3g} % positive"
            lines.append(f"{key} {{type: binary, label: {column}}}  # ? {rate}")
        elif fact.kind == "rating":
            above = _middle(fact)
            lines.append(
                f"{key} {{type: binary, label: {{column: {column}, above: {above}}}}}"
                f"  # ? liked if above {above}, of {fact.low:g} to {fact.high:g}"
            )
        else:
            scale = ""
            if (fact.high or 0) > 10_000:
                scale = ", scale: 0.001"
            label = f"{{column: {column}{scale}}}" if scale else column
            kind = "ziln" if fact.zeros >= 0.3 else "regression"
            note = f"an amount up to {fact.high:g}, {100 * fact.zeros:.3g} % are 0"
            lines.append(f"{key} {{type: {kind}, label: {label}}}  # ? {note}")
    if len(lines) == 3:
        numbers = [f.name for f in seen.columns.values() if f.low is not None]
        raise ConfigError(
            f"{file}: no column looks like a label. Needed is a column of 0 and 1 named after an "
            "action (click, like, purchase, label, …), a rating, or an amount (spend, play_time, "
            f"…); numbers found: {', '.join(numbers[:20]) or 'none'}. Rename a column, or start "
            "from a file in configs/"
        )
    return [*lines, ""]


def _features(seen: Survey) -> list[str]:
    labels = {f.name for f in _labels(seen)}
    time = seen.time.column if seen.time else ""
    lines = ["# What is known before the row is shown.", "features:"]
    left: list[str] = []
    keys = _feature_keys(seen)
    for fact in seen.columns.values():
        name, key, column = fact.name, f"  {keys[fact.name]}:", _scalar(fact.name)
        if name in labels or name in (time, "split", seen.request_id):
            continue
        if TRUTH.search(name) and any(name.endswith(_short(x)) or x in name for x in labels):
            left.append(f"{name}: looks like a prediction of a label")
        elif not name.strip():
            left.append("a column without a name (an index?)")
        elif fact.kind == "constant":
            left.append(f"{name}: has one value only")
        elif fact.kind == "text":
            left.append(f"{name}: free text or a key of its own ({fact.distinct:,} values)")
        elif fact.kind == "list":
            lines += _list(fact, key, seen, left)
        elif pa.types.is_temporal(fact.type) or _is_calendar(fact):
            left.append(f"{name}: a time; derive what matters (hour, age) and add it to the log")
        elif fact.kind == "name":
            rare = fact.distinct > 1_000
            encoding = ", encoding: {type: vocabulary, min_count: 2}" if rare else ""
            dim = 16 if rare else 8
            lines.append(
                f"{key} {{type: categorical, column: {column}, dim: {dim}{encoding}}}"
                f"  # {fact.distinct:,} values"
            )
        else:
            wide = fact.low is not None and fact.low >= 0 and (fact.high or 0) > 1_000
            transform = ", transform: log1p" if wide else ""
            lines.append(
                f"{key} {{type: numeric, column: {column}{transform}}}"
                f"  # {fact.low:g} to {fact.high:g}{_missing(fact)}"
            )
    lines += _from_the_past(seen)
    if len(lines) == 2:
        raise ConfigError(
            "no column can be a feature: all are labels, times, constants or free text"
        )
    lines += [f"  # left out: {why}" for why in left]
    return [*lines, ""]


def _list(fact: Facts, key: str, seen: Survey, left: list[str]) -> list[str]:
    if seen.item and re.search("hist|seq|past", fact.name, re.I):
        fields = _feature_keys(seen)[seen.item]
        return [
            f"{key} {{type: sequence, column: {_scalar(fact.name)}, fields: [{fields}]}}"
            f"  # ? ids of {seen.item}, oldest first"
        ]
    left.append(
        f"{fact.name}: a list; `type: sequence` reads histories, `type: pretrained` vectors"
    )
    return []


def _from_the_past(seen: Survey) -> list[str]:
    """Histories and smoothed rates, which need to know who, what and (for histories) when."""
    lines: list[str] = []
    keys, task_keys = _feature_keys(seen), _task_keys(seen)
    binary = sorted(
        (f for f in seen.columns.values() if f.kind == "label"), key=lambda f: abs(f.zeros - 0.5)
    )[:3]  # the three that split the rows most evenly
    if seen.user and seen.item and seen.time:
        lines.append(
            "  # The user's past: one sequence per kind of behaviour, strictly earlier rows only."
        )
        events = binary or [None]
        for fact in events:
            key = f"past_{task_keys[fact.name]}" if fact else "past"
            which = f"behaviour: {{column: {_scalar(fact.name)}, value: 1}}, " if fact else ""
            lines.append(
                f"  {key}: {{type: sequence, {which}fields: [{keys[seen.item]}], max_length: 30}}"
            )
    fold = "" if seen.time else ", fold: leave_one_out"
    for role in (seen.user, seen.item):
        for fact in binary if role else []:
            task = task_keys[fact.name]
            lines.append(
                f"  {keys[role or '']}_{task}_rate: "
                f"{{type: statistic, key: [{_scalar(role or '')}], "
                f'value: "task:{task}", outputs: [logit, count]{fold}}}'
            )
    return lines


def _rest(seen: Survey) -> list[str]:
    batch = 32
    while batch < 4096 and batch * 200 < seen.rows:
        batch *= 2
    return [
        "model:",
        "  type: infnet",
        "  token_dim: 16",
        "  num_blocks: 2",
        "  proxy_hidden: [64]",
        "  gate_hidden: [32]",
        "  head_hidden: [32]",
        "",
        "# Trained and measured beside the model: without them a metric says little.",
        "rivals:",
        *(["  floor: {type: floor}"] if any("_rate" in x for x in _from_the_past(seen)) else []),
        "  online_stack: {type: online_stack}",
        "",
        "train:",
        "  epochs: 3",
        f"  batch_size: {batch}",
        "  early_stopping: {metric: " + _headline(seen) + ", patience: 1}",
        "",
        "compute: {type: local, workers: 1}",
        "",
    ]


def _headline(seen: Survey) -> str:
    kinds = {f.kind for f in _labels(seen)}
    return "auc" if kinds & {"label", "rating"} else "mae"


def _is_calendar(fact: Facts) -> bool:
    """Days written as 20220408: a day of the test period is never seen in training."""
    dated = re.search(r"(^|_)(date|day|dt)$", fact.name, re.I)
    return bool(dated and fact.low and fact.low > 19_000_000 and (fact.high or 0) < 21_000_000)


def _middle(fact: Facts) -> int:
    low, high = int(fact.low or 0), int(fact.high or 0)
    return (low + high) // 2


def _missing(fact: Facts) -> str:
    return f", {100 * fact.missing:.3g} % missing" if fact.missing else ""


def _short(name: str) -> str:
    return re.sub(r"^(is|has|did)_", "", name)


def _feature_keys(seen: Survey) -> dict[str, str]:
    return _distinct({name: _plain(name) for name in seen.columns})


def _task_keys(seen: Survey) -> dict[str, str]:
    return _distinct({fact.name: _plain(_short(fact.name)) for fact in _labels(seen)})


def _distinct(keys: dict[str, str]) -> dict[str, str]:
    """The keys, a later one of the same text numbered."""
    result: dict[str, str] = {}
    taken: set[str] = set()
    for name, key in keys.items():
        key = key or "column"
        numbered = (f"{key}_{n}" for n in itertools.count(2))
        result[name] = next(k for k in itertools.chain([key], numbered) if k not in taken)
        taken.add(result[name])
    return result


def _plain(name: str) -> str:
    """A key that needs no quotes and has no dots."""
    key = re.sub(r"\W+", "_", name).strip("_")
    return f"f_{key}" if key[:1].isdigit() or key.lower() in ("true", "false", "null") else key


def _scalar(text: str) -> str:
    """A YAML scalar that reads back as this text."""
    if re.fullmatch(r"[A-Za-z_/.][\w/.+-]*", text) and parse_yaml(text, where=text) == text:
        return text
    return json.dumps(text, ensure_ascii=False)


def _iso(milliseconds: int) -> str:
    moment = datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)
    if milliseconds % 86_400_000 == 0:
        return moment.strftime("%Y-%m-%d")
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
