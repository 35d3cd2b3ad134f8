"""`python -m pipelines.local FOLDER`: KFP's local runner on the pipeline that FOLDER describes.

It runs in a process of its own below `pipelines.run`, which shows what goes on: KFP writes its
colours and rules to this process's output, and keeps no hold on what a step starts.
"""

import json
import sys
import warnings
from pathlib import Path

from kfp import components, local

SPEC, ARGUMENTS, OUTPUTS = "pipeline.yaml", "arguments.json", "kfp"


def main(folder: Path) -> int:
    """Run the pipeline; 0 if every step that was to run succeeded."""
    # Both are true and wanted: the step runs in this environment, whatever the image is called.
    warnings.filterwarnings("ignore", message=".*custom or non-Python base image")
    warnings.filterwarnings("ignore", message=".*have no effect in the current local runner")
    runner = local.SubprocessRunner(use_venv=False)
    workspace = folder / "workspace"  # KFP makes one in any case, and removes it
    workspace.mkdir()
    local.init(
        runner,
        pipeline_root=str(folder.resolve() / OUTPUTS),
        workspace_root=str(workspace),
        raise_on_error=True,
    )
    text = without_retries((folder / SPEC).read_text(encoding="utf-8"))
    pipeline = components.load_component_from_text(text)
    try:
        pipeline(**json.loads((folder / ARGUMENTS).read_text(encoding="utf-8")))
    except RuntimeError as failed:  # KFP says which task; the step itself has said why
        print(failed)
        return 1
    return 0


def without_retries(text: str) -> str:
    """A specification whose steps run once.

    On a backend a step is repeated because a node may be gone. Here nothing else would happen the
    second time, and a step that is refused or interrupted must end the run.
    """
    import yaml

    spec = yaml.safe_load(text)
    for dag in [
        spec["root"]["dag"],
        *(c["dag"] for c in spec["components"].values() if "dag" in c),
    ]:
        for task in dag["tasks"].values():
            task.pop("retryPolicy", None)
    return yaml.safe_dump(spec, sort_keys=False, allow_unicode=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
