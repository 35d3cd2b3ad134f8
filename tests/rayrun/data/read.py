"""Files written for a test, and read through a source."""

import pyarrow as pa

from rayrun.config import validate
from rayrun.data.source import PathSource, open_source


def opened(path, **more):
    return open_source(validate(PathSource, {"path": str(path), **more}, where="test"))


def rows(log, columns=None):
    return pa.concat_tables(t for f in log.fragments() for t in log.read(f, columns))


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return path
