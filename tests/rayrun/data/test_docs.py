"""docs/your-data.md: its YAML is what the program reads, its script writes what it says."""

import pathlib
import re
import subprocess
import sys

import pytest

from rayrun.config import Config, parse_yaml, validate
from rayrun.data.source import Source, open_source

TEXT = (pathlib.Path(__file__).parents[3] / "docs" / "your-data.md").read_text(encoding="utf-8")


class Data(Config):
    source: Source


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


@pytest.mark.parametrize("block", blocks("yaml"))
def test_every_source_in_the_guide_is_valid(block):
    found = parse_yaml(block, where="docs/your-data.md")["data"]["source"]
    assert validate(Data, {"source": found}, where="docs/your-data.md").source


def test_the_script_of_the_guide_writes_the_log_that_it_describes(tmp_path):
    (script,) = blocks("python")
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=60)
    described = parse_yaml(blocks("yaml")[0], where="docs/your-data.md")["data"]["source"]
    described["path"] = str(tmp_path / "shop.csv")
    log = open_source(validate(Data, {"source": described}, where="guide").source)
    rows = sum(t.num_rows for f in log.fragments() for t in log.read(f))
    assert rows == 8_000
    assert len(log.schema.names) == 5
