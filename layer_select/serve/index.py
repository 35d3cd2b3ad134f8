"""The nearest items to h without looking at all of them: an inverted file of faiss.

    the cells: k-means of the vectors; h looks into the `probes` cells whose centres it agrees with
    most, at 8-bit codes of the vectors; the best `refine`·k are scored again, exactly.

Johnson, Douze & Jégou 2019 (arXiv:1702.08734). Inner product throughout. A user for whom the cells
hold too few items is ranked over the whole catalogue.

Shapes: B users, I items, D width.
"""

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from layer_select.serve.config import Exact, Faiss
from rayrun.config import ConfigError

Floats = np.ndarray[Any, np.dtype[np.float32]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

TRAINED_ON = 64
"""Vectors per cell that its centre is learnt from; faiss asks for at least 39."""


class FaissIndex:
    """An index over a catalogue that does not change."""

    def __init__(
        self,
        vectors: Floats,
        config: Faiss,
        *,
        threads: int = 1,
        seed: int = 0,
        file: Path | None = None,
    ) -> None:
        """Learn the cells and put every item into one, or read what was written of that.

        Args:
            vectors: [I, D].
            config: cells, and how many of them are searched.
            threads: that building and searching may use.
            seed: of the sample that cells are learnt from.
            file: of `write`, with the same vectors; used unless `config` asks for other cells.

        Raises:
            ConfigError: more cells than items, or a file that is damaged or of other vectors.
        """
        faiss: Any = importlib.import_module("faiss")
        faiss.omp_set_num_threads(threads)
        items, width = vectors.shape
        lists = config.lists or max(1, round(math.sqrt(items)))
        if lists > items:
            raise ConfigError(
                f"serve.index.lists ({lists}) must be at most the number of items ({items}); "
                "leave it out: their square root is taken"
            )
        self.lists, self._refine = lists, config.refine
        self._vectors = vectors
        self._index: Any = None if file is None else _read(faiss, file, vectors)
        if self._index is not None and self._index.nlist == lists:
            self._index.nprobe = min(config.probes, lists)
            return
        centres = faiss.IndexFlatIP(width)
        self._index = faiss.IndexIVFScalarQuantizer(
            centres, width, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        )
        self._centres = centres  # the index does not own them
        self._index.nprobe = min(config.probes, lists)
        some = min(items, TRAINED_ON * lists)
        chosen = np.random.default_rng(seed).choice(items, some, replace=False)
        self._index.cp.min_points_per_centroid = 1
        self._index.train(np.ascontiguousarray(vectors[np.sort(chosen)]))
        self._index.add(np.ascontiguousarray(vectors))

    def write(self, file: Path) -> None:
        """Keep the cells and codes; the vectors are kept beside."""
        faiss: Any = importlib.import_module("faiss")
        faiss.write_index(self._index, str(file))

    @property
    def size_bytes(self) -> int:
        """Of the codes and their items; the vectors are kept beside."""
        width = self._vectors.shape[1]
        return len(self._vectors) * (width + 8) + self.lists * width * 4

    def search(self, hidden: Floats, k: int) -> list[Ints]:
        """Numbers of about the `k` best items of each user, best first; fewer if the cells do."""
        wanted = min(k * self._refine, len(self._vectors))
        _, found = self._index.search(np.ascontiguousarray(hidden), wanted)
        best: list[Ints] = []
        for row, numbers in zip(hidden, found, strict=True):
            numbers = numbers[numbers >= 0]
            scores = self._vectors[numbers] @ row
            best.append(numbers[np.lexsort((numbers, -scores))][:k])
        return best


def index_of(
    config: Exact | Faiss, vectors: Floats, *, threads: int = 1, file: Path | None = None
) -> FaissIndex | None:
    """The index of a catalogue, or None where it is scored whole.

    Raises:
        ConfigError: as `FaissIndex`.
    """
    if isinstance(config, Exact) or len(vectors) <= config.above:
        return None
    return FaissIndex(vectors, config, threads=threads, file=file)


def _read(faiss: Any, file: Path, vectors: Floats) -> Any:
    try:
        index = faiss.read_index(str(file))
    except RuntimeError as error:  # what faiss raises, with its own source lines
        raise ConfigError(
            f"{file} is no index that faiss can read ({str(error).splitlines()[-1]}); export the "
            "bundle again"
        ) from None
    if not hasattr(index, "nlist") or (index.ntotal, index.d) != vectors.shape:
        raise ConfigError(
            f"{file} must be an inverted file over {vectors.shape[0]} vectors of width "
            f"{vectors.shape[1]}, found {index.ntotal} of width {index.d}: it is of another "
            "catalogue; export the bundle again"
        )
    return index
