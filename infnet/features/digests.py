"""Digest of an Arrow table's content: equal for equal values, however they are chunked."""

import hashlib

import numpy as np
import pyarrow as pa

from infnet.features.columns import as_numpy, pc, plain


def table_digest(table: pa.Table) -> str:
    """`sha256:…` over column names, types and values."""
    total = hashlib.sha256()
    for name in table.column_names:
        _add(total, name, plain(table[name]))
    return "sha256:" + total.hexdigest()


def _add(total: "hashlib._Hash", name: str, values: pa.Array) -> None:
    kind = values.type
    shown = "nested" if pa.types.is_nested(kind) else str(kind)  # the name of a list's item varies
    total.update(f"{name}:{shown}:{len(values)};".encode())
    total.update(np.packbits(as_numpy(pc.is_null(values))).tobytes())
    if pa.types.is_struct(kind):
        for at, member in enumerate(kind):
            _add(total, member.name, plain(pc.struct_field(values, [at])))
    elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        total.update(as_numpy(pc.fill_null(pc.list_value_length(values), 0)).tobytes())
        _add(total, "item", plain(values.flatten()))
    elif pa.types.is_string(kind):
        lengths = pc.fill_null(pc.binary_length(values), 0)
        total.update(as_numpy(lengths).tobytes())
        total.update(_text_bytes(values))
    else:
        filled = pc.fill_null(values, False) if pa.types.is_boolean(kind) else values
        if not pa.types.is_boolean(kind) and values.null_count:
            filled = values.fill_null(pa.scalar(0).cast(kind))
        total.update(np.ascontiguousarray(as_numpy(filled)).tobytes())


def _text_bytes(values: pa.Array) -> bytes:
    # a copy through take: offsets from 0, and no bytes behind nulls
    compact = pc.fill_null(values, "").take(pa.array(np.arange(len(values))))
    _, _, data = compact.buffers()
    if data is None:
        return b""
    return data.to_pybytes()[: pc.sum(pc.binary_length(compact)).as_py() or 0]
