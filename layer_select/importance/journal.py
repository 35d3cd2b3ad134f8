"""Journal of a pass: what finished micro-batches gave, so that a killed run goes on from there.

One file per attempt and worker, replaced as a whole when more micro-batches are done:
`<attempt>-<rank>.safetensors`, with the samples and measurements of each of them, the seconds
spent, and the signed sums Σ_n g_n w over its own micro-batches. A later attempt, of any number of
workers, reads the files of the earlier ones and computes the rest.
"""

from dataclasses import dataclass, field

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from layer_select.importance.method import Micro
from rayrun import storage
from rayrun.config import ConfigError

FLUSH_S = 20.0
"""Work between two writes: what a kill may cost."""


@dataclass
class Part:
    """What one worker measured in one attempt."""

    micros: list[Micro] = field(default_factory=list)
    signed: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """Σ_n g_n w of a layer by (index of the micro-batch mod 2, layer), flat, float64, on the
    host."""
    seconds: dict[str, float] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """As safetensors; floats keep every bit."""
        tensors: dict[str, Tensor] = {}
        for micro in self.micros:
            tensors[f"{micro.index}/sample"] = micro.sample
            tensors |= {f"{micro.index}/values/{key}": v for key, v in micro.values.items()}
            tensors |= {f"{micro.index}/totals/{key}": v for key, v in micro.totals.items()}
        tensors |= {f"signed/{half}/{layer}": v for (half, layer), v in self.signed.items()}
        for name, seconds in self.seconds.items():
            tensors[f"seconds/{name}"] = torch.tensor(seconds, dtype=torch.float64)
        return save({name: value.contiguous() for name, value in tensors.items()})

    @classmethod
    def from_bytes(cls, content: bytes, num_layers: int) -> "Part":
        """Read it back.

        Raises:
            SafetensorError: damaged.
        """
        part, by_index = cls(), dict[int, Micro]()
        for name, value in load(content).items():
            first, _, rest = name.partition("/")
            if first == "seconds":
                part.seconds[rest] = float(value)
                continue
            if first == "signed":
                half, _, layer = rest.partition("/")
                part.signed[int(half), int(layer)] = value
                continue
            index = int(first)
            if index not in by_index:
                none = torch.zeros(0, dtype=torch.int64)
                by_index[index] = Micro(index, none, none[:, None], num_layers)
            kind, _, key = rest.partition("/")
            if kind == "sample":
                by_index[index].sample = value
                by_index[index].mask = value[:, None][:, :0]
            else:
                getattr(by_index[index], kind)[key] = value
        part.micros = [by_index[index] for index in sorted(by_index)]
        return part


class Journal:
    """The files of one pass, under a folder that its key names."""

    def __init__(self, folder: storage.Uri, key: str, *, flush_s: float = FLUSH_S) -> None:
        """Nothing is read or written yet.

        Args:
            folder: of the journals of this run.
            key: digest of all that decides the numbers; others' files are never seen.
            flush_s: seconds of work between two writes.
        """
        self.folder = storage.join(folder, key.removeprefix("sha256:")[:16])
        self.flush_s = flush_s
        self._attempt = 0

    def read(self, num_layers: int) -> list[Part]:
        """The parts of earlier attempts, in a fixed order; the next attempt gets a number.

        Raises:
            ConfigError: a file is damaged.
        """
        if not storage.exists(self.folder):
            return []
        found: list[Part] = []
        for name in storage.names(self.folder):
            place = storage.join(self.folder, name)
            try:
                found.append(Part.from_bytes(storage.read_bytes(place), num_layers))
            except (SafetensorError, ValueError) as error:
                raise ConfigError(
                    f"{place}, a journal of finished micro-batches, is damaged ({error}); remove "
                    "it, its micro-batches will be computed again"
                ) from None
            self._attempt = max(self._attempt, int(name.partition("-")[0]) + 1)
        return found

    def write(self, rank: int, part: Part) -> None:
        """Replace the file of this attempt and worker."""
        name = f"{self._attempt:04d}-{rank:04d}.safetensors"
        storage.write_bytes(storage.join(self.folder, name), part.to_bytes())
