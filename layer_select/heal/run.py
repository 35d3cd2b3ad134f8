"""`layer-select heal`: a student learns to recommend as the full model does, on Ray Train."""

from layer_select.config import LayerSelectConfig
from layer_select.heal.config import Narrow
from layer_select.heal.start import Cut, Folder, Random
from rayrun.metrics import Result


def heal_model(
    config: LayerSelectConfig, out: str, *, start: Cut | Folder | Random | Narrow, cache: str = ""
) -> Result:
    """Heal one student of the model of `config` (the teacher) by `config.heal`.

    Rows, their order and the number of steps follow from `config` alone, so that students of
    different starts are healed at the same budget. A call that was interrupted is continued by the
    same call; one that finds the same model at `out` returns its result.

    Args:
        config: the whole run; `inputs.model` or `model` is the teacher.
        out: output directory: a smaller model, `result.json`, `report.html`, manifest.
        start: what the student begins as.
        cache: folder of teacher outputs, shared by the students of one teacher; empty: beside the
            state of this run, and removed with it.

    Returns:
        `result.json`: metrics on the test samples after healing; under `baselines` `before` (the
        student before it) and `full` (the teacher); `details` holds validation metrics, cost and
        losses.

    Raises:
        ConfigError: bad configuration, model or data, or `out` holds something else.
        RuntimeError: workers failed more than `heal.max_failures` times; the same call continues.
    """
    raise NotImplementedError
