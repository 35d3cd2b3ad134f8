"""What the teacher says about rows: asked beside the student, or once and kept on disk.

    <folder>/<digest of teacher and rows>/<signal>/000012.safetensors

A file holds `ROWS_PER_FILE` rows of one signal: its columns, and `starts`, where each row begins.
Files that stand are used: by a run that is resumed, and by other students of the same teacher. In
memory is one file while it is made, and what the operating system keeps of those that are read.
"""

import tempfile
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from layer_select.heal.batch import Numbered
from layer_select.heal.recommender import Recommender
from layer_select.heal.signals import Signal, positions
from layer_select.pretrain.texts import Rows
from rayrun import storage
from rayrun.config import ConfigError
from rayrun.ray.worker import Worker

ROWS_PER_FILE = 16
OPEN_FILES = 256
DTYPES = {"float32": torch.float32, "float16": torch.float16}

Said = Mapping[str, Mapping[str, Tensor]]
"""Signal → column → one row for each position of the rows asked for, in their order."""


class Teacher(ABC):
    """Whoever can be asked about rows."""

    @abstractmethod
    def said(self, batch: Numbered) -> Said:
        """Of these rows, on their device."""


class Silent(Teacher):
    """No objective asks for a teacher."""

    def said(self, batch: Numbered) -> Said:
        """Nothing."""
        return {}


class Online(Teacher):
    """The model itself."""

    def __init__(
        self, recommender: Recommender, signals: Sequence[Signal], *, micro_rows: int, bf16: bool
    ) -> None:
        """`micro_rows` of a pass at most (0: all); halved where a GPU's memory does not suffice."""
        self._recommender = recommender.eval().requires_grad_(False)
        self._signals, self._micro_rows, self._bf16 = signals, micro_rows, bf16
        self._layers = sorted({layer for signal in signals for layer in signal.layers})

    @torch.no_grad()
    def said(self, batch: Numbered) -> Said:
        """See `Teacher`."""
        rows = batch.rows
        while True:
            size = self._micro_rows or max(1, len(rows))
            try:
                parts = [self._of(rows[slice(at, at + size)]) for at in range(0, len(rows), size)]
                break
            except torch.OutOfMemoryError:
                if min(size, len(rows)) <= 1:
                    raise
                self._micro_rows = min(size, len(rows)) // 2
                torch.cuda.empty_cache()
        return {
            name: {
                column: torch.cat([part[name][column] for part in parts])
                for column in parts[0][name]
            }
            for name in parts[0]
        }

    def _of(self, rows: Rows) -> dict[str, dict[str, Tensor]]:
        with torch.autocast(rows.ids.device.type, torch.bfloat16, enabled=self._bf16):
            seen = self._recommender.see(rows, self._layers)
            return {signal.name: signal.read(seen) for signal in self._signals}


class Cache(Teacher):
    """What was said before, from files."""

    def __init__(self, folder: str, signals: Sequence[Signal]) -> None:
        """`folder` belongs to one teacher and one set of rows; `fill` makes what is missing."""
        self._folder, self._signals = folder, signals
        self._files: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._copies = tempfile.TemporaryDirectory(prefix="teacher-")

    def missing(self, rows: Rows) -> list[tuple[Signal, int]]:
        """Signals and files that do not stand."""
        files = -(-len(rows) // ROWS_PER_FILE)
        return [
            (signal, number)
            for number in range(files)
            for signal in self._signals
            if not storage.exists(self._place(signal.name, number))
        ]

    def asked_for(self, rows: Rows) -> int:
        """Tokens of the rows that `fill` would ask the teacher about."""
        numbers = {number for _, number in self.missing(rows)}
        return sum(
            rows[slice(n * ROWS_PER_FILE, (n + 1) * ROWS_PER_FILE)].num_tokens for n in numbers
        )

    def fill(
        self,
        worker: Worker,
        teacher: Recommender,
        rows: Rows,
        *,
        dtype: str,
        micro_rows: int,
        bf16: bool,
        progress: Callable[[str], None],
    ) -> None:
        """Ask the teacher about all rows of which something is missing. A collective.

        Args:
            worker: file f belongs to worker f mod `world_size`.
            teacher: on the worker's device.
            rows: all rows, in the order of their numbers.
            dtype: of what is kept.
            micro_rows: see `Online`.
            bf16: see `Online`.
            progress: told how far it is.
        """
        missing: dict[int, list[Signal]] = {}
        for signal, number in self.missing(rows):
            missing.setdefault(number, []).append(signal)
        worker.barrier()  # all look before any writes
        mine = [n for n in missing if n % worker.world_size == worker.rank]
        for done, number in enumerate(mine, start=1):
            part = rows[slice(number * ROWS_PER_FILE, (number + 1) * ROWS_PER_FILE)]
            asked = Online(teacher, missing[number], micro_rows=micro_rows, bf16=bf16)
            here = part.to(worker.device)
            said = asked.said(Numbered(here, torch.arange(len(part))))
            for signal in missing[number]:
                counts = positions(part, signal.at).sum(1)
                starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
                columns = {
                    name: _kept(column, DTYPES[dtype]) for name, column in said[signal.name].items()
                }
                content = save({"starts": starts, **columns})
                storage.write_bytes(self._place(signal.name, number), content)
            progress(f"asking the teacher, {done} of {len(mine)}")
        worker.barrier()

    def said(self, batch: Numbered) -> Said:
        """See `Teacher`.

        Raises:
            ConfigError: a file is missing or damaged.
        """
        found: dict[str, dict[str, Tensor]] = {}
        for signal in self._signals:
            rows = [self._row(signal.name, int(number)) for number in batch.number]
            found[signal.name] = {
                column: torch.cat([row[column] for row in rows]).to(batch.rows.ids.device)
                for column in rows[0]
            }
            ids = found[signal.name].get("ids")
            if ids is not None:
                found[signal.name]["ids"] = ids.long()
        return found

    def _row(self, signal: str, number: int) -> dict[str, Tensor]:
        file, place = self._open(signal, number // ROWS_PER_FILE), number % ROWS_PER_FILE
        begin, end = file.get_slice("starts")[place : place + 2].tolist()
        return {
            column: file.get_slice(column)[begin:end]
            for column in file.keys()  # noqa: SIM118 (not a mapping)
            if column != "starts"
        }

    def _open(self, signal: str, number: int) -> Any:
        key = (signal, number)
        if key not in self._files:
            place = self._place(signal, number)
            try:
                local = storage.fetch(place, Path(self._copies.name) / signal)
                self._files[key] = safe_open(str(local), framework="pt")
            except (SafetensorError, OSError) as error:
                raise ConfigError(
                    f"what the teacher said is damaged: {place} ({error}); remove {self._folder} "
                    "and start again"
                ) from error
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)
        self._files.move_to_end(key)
        return self._files[key]

    def _place(self, signal: str, number: int) -> str:
        return storage.join(self._folder, signal, f"{number:06d}.safetensors")


def _kept(column: Tensor, dtype: torch.dtype) -> Tensor:
    column = column.cpu().contiguous()
    return column.to(dtype) if column.dtype.is_floating_point else column.to(torch.int32)
