"""A checkpoint with other files beside it: a head that was fitted apart, for instance."""

from collections.abc import Mapping

from layer_select.sources.checkpoint import Checkpoint, Info
from layer_select.sources.view import View


class Beside(View):
    """The same model; `files` stand where, or instead of where, it has such files."""

    def __init__(self, source: Checkpoint, files: Mapping[str, bytes]) -> None:
        """`files` are contents by name."""
        super().__init__(source, source.config)
        self._files = dict(files)

    @property
    def quantised(self) -> str | None:
        """See `Checkpoint`."""
        return self.source.quantised

    @property
    def digest(self) -> str:
        """That of the model: files beside the weights do not enter."""
        return self.source.digest

    @property
    def shapes(self) -> Mapping[str, Info]:
        """See `Checkpoint`."""
        return self.source.shapes

    def file(self, name: str) -> bytes | None:
        """See `Checkpoint`."""
        return self._files.get(name) or self.source.file(name)
