"""The parser of headers: the same as gguf-py's, and never worse than one error."""

import random
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from layer_select.sources.gguf_header import read_header
from rayrun.config import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_uint8("a.uint8", 7)
    writer.add_int64("a.int64", -(1 << 40))
    writer.add_float32("a.float32", 1e-6)
    writer.add_float64("a.float64", 1e-6)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "Fußball 足球")
    writer.add_array("a.texts", ["", "a", "足球"])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_array("a.floats", [0.5, 0.25])
    writer.add_custom_alignment(64)
    writer.add_tensor("one", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("two", np.zeros((2, 34), np.uint8), raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_it_says_what_gguf_py_says(file: Path) -> None:
    theirs, ours = GGUFReader(file), read_header(file, "small")
    expected = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert ours.metadata == expected
    assert {n: (t.begin, t.size, t.type) for n, t in ours.tensors.items()} == {
        t.name: (t.data_offset, t.n_bytes, int(t.tensor_type)) for t in theirs.tensors
    }
    assert [t.shape for t in ours.tensors.values()] == [(3, 4), (2, 32)]


def test_every_cut_is_one_error(file: Path) -> None:
    content = file.read_bytes()
    end = max(tensor.begin + tensor.size for tensor in read_header(file, "small").tensors.values())
    for length in range(end):  # what follows is padding
        file.write_bytes(content[:length])
        with pytest.raises(ConfigError, match=r"small: .*(cut short|are no GGUF file)"):
            read_header(file, "small")


def test_a_damaged_byte_is_one_error_or_none(file: Path) -> None:
    content = bytearray(file.read_bytes())
    generator = random.Random(0)
    errors = 0
    for _ in range(600):
        at = generator.randrange(4, len(content) - 200)
        before, content[at] = content[at], generator.choice((0, 1, 127, 255))
        file.write_bytes(content)
        try:
            read_header(file, "small")
        except ConfigError:
            errors += 1
        content[at] = before
    assert errors > 120


def header(
    version: int = 3, tensors: bytes = b"", entries: bytes = b"", counts: tuple[int, int] = (0, 0)
) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, *counts) + entries + tensors


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dims + struct.pack("<IQ", kind, 0)


ARRAYS_OF_ARRAYS = b"".join(struct.pack("<IQ", 9, 1) for _ in range(6))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04" + bytes(30), r"begins with the bytes GGUF, found b'PK\\x03\\x04'"),
        (header(version=1), r"version 2 and 3 is read, found 1"),
        (header(version=3 << 24), "found one in big-endian byte order"),
        (header(entries=entry("k", 4, bytes(4)) * 2, counts=(0, 2)), "metadata key k stands twice"),
        (header(entries=entry("k", 77, bytes(9)), counts=(0, 1)), "a value of type 77"),
        (header(entries=entry("k", 9, ARRAYS_OF_ARRAYS), counts=(0, 1)), "a value of type 9"),
        (header(counts=(0, 1 << 60)), "cut short, or damaged"),
        (
            header(entries=entry("general.alignment", 4, struct.pack("<I", 48)), counts=(0, 1)),
            "alignment must be a power of two, found 48",
        ),
        (header(tensors=tensor("x", (4,), 0) * 2 + bytes(64), counts=(2, 0)), "x stands twice"),
        (header(tensors=tensor("x", (1,) * 5, 0), counts=(1, 0)), "x has 5 dimensions"),
        (header(tensors=tensor("x", (4,), 999), counts=(1, 0)), "x has the tensor type 999"),
        (
            header(tensors=tensor("x", (33,), 8), counts=(1, 0)),
            r"x of shape \[33\] cannot be of type Q8_0, whose blocks hold 32",
        ),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_header(path, "odd")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gone: there is no such file"):
        read_header(tmp_path / "gone", "gone")
    with pytest.raises(ConfigError, match="a GGUF file is needed: Is a directory"):
        read_header(tmp_path, "folder")
