"""Journal of measured sets of layers, so that a search that was killed goes on from there.

JSONL: a head that says what it is of, then a line for each set. A torn last line is none. On a disk
a line is appended when it is known. An object of an object store cannot grow: there the whole file
is written again, at most every `FLUSH_S` seconds.
"""

import json
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rayrun import storage
from rayrun.config import ConfigError

FORMAT_VERSION = 1
FLUSH_S = 20.0
"""Work between two writes to an object store: what a kill may cost there."""


class Journal:
    """The values of the sets that are known, [N K] each."""

    def __init__(
        self, place: storage.Uri, key: str, shape: Sequence[int], *, flush_s: float = FLUSH_S
    ) -> None:
        """Nothing is read or written yet.

        Args:
            place: the file, a path or `s3://` URI.
            key: what the values depend on.
            shape: N and K.
            flush_s: seconds between two writes to an object store.
        """
        self._place = place
        self._path = storage.local_path(place)
        self._shape = tuple(shape)
        self._head = {"format_version": FORMAT_VERSION, "key": key, "shape": list(shape)}
        self._text = b""
        """All that is known, where the file is an object."""
        self._flush_s, self._written = flush_s, time.monotonic()

    def read(self) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """All whole entries; the file is begun if it is not there, and a torn end is cut off.

        Raises:
            ConfigError: damaged, or of another key.
        """
        text = storage.read_bytes(self._place) if storage.exists(self._place) else b""
        whole = text[: text.rfind(b"\n") + 1]
        begun = bool(whole)
        if not begun:
            whole = json.dumps(self._head).encode() + b"\n"
        if not begun or len(whole) < len(text):
            storage.write_bytes(self._place, whole)
        self._text = b"" if self._path is not None else whole
        head, *lines = whole.decode().splitlines()
        try:
            found = json.loads(head)
            entries = [json.loads(line) for line in lines]
        except ValueError as error:
            raise ConfigError(f"{self._place} is damaged ({error}); remove it") from None
        if found != self._head:
            raise ConfigError(
                f"{self._place} must be the journal of {self._head}, found {found}; remove it, or "
                "give the run another cache"
            )
        for entry in entries:
            values = torch.tensor(entry["values"], dtype=torch.float64)
            yield tuple(entry["kept"]), values.reshape(self._shape)

    def add(self, kept: Sequence[int], values: Tensor) -> None:
        """Note one set."""
        line = json.dumps({"kept": kept, "values": values.tolist()}).encode() + b"\n"
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(line)
            return
        self._text += line
        if time.monotonic() - self._written >= self._flush_s:
            storage.write_bytes(self._place, self._text)
            self._written = time.monotonic()
