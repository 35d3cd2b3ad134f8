"""h by vLLM: an extra for a GPU. vLLM keeps prefixes itself (automatic prefix caching).

Nothing here has run yet: it is written to the documentation of vLLM, for a machine with a GPU.
"""

import importlib
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from layer_select.serve.config import Vllm
from layer_select.serve.engine import Engine
from layer_select.serve.prefix_cache import Prompt
from layer_select.sources import Checkpoint, stream
from rayrun.config import ConfigError


class VllmEngine(Engine):
    """A pooling model of vLLM that returns the last token's state after the final norm."""

    def __init__(self, checkpoint: Checkpoint, config: Vllm) -> None:
        """Start vLLM in this process.

        Args:
            checkpoint: of a Hugging Face folder, which vLLM reads itself.
            config: the share of the GPU it may take.

        Raises:
            ConfigError: vLLM is not installed, or there is no GPU.
        """
        missing = [] if find_spec("vllm") else ["vllm is not installed"]
        missing += [] if torch.cuda.is_available() else ["no GPU is to be seen"]
        if missing:
            raise ConfigError(
                "serve.engine.type is vllm, which needs a GPU and the extra `vllm` where the "
                f"replica runs, but {' and '.join(missing)}; pip install 'infnet-ray[vllm]' on a "
                "machine with a GPU and set serve.gpus_per_replica: 1, or set "
                "serve.engine.type: transformers"
            )
        vllm: Any = importlib.import_module("vllm")
        config_module: Any = importlib.import_module("vllm.config")
        self._tokens: Any = importlib.import_module("vllm.inputs").TokensPrompt
        self._model: Any = vllm.LLM(
            model=checkpoint.where,
            runner="pooling",
            convert="embed",
            pooler_config=config_module.PoolerConfig(pooling_type="LAST", use_activation=False),
            dtype="float32",
            enable_prefix_caching=True,
            gpu_memory_utilization=config.gpu_memory_share,
        )
        self._embedding: Any = stream(checkpoint).body.embed_tokens  # its scale included

    def embedding(self) -> Any:
        """See `Engine`."""
        return self._embedding

    def last_hidden(self, prompts: Sequence[Prompt], *, reuse: bool = True) -> Float[Tensor, "B D"]:
        """See `Engine`; vLLM decides what it reuses."""
        asked = [self._tokens(prompt_token_ids=list(prompt.ids)) for prompt in prompts]
        found = self._model.embed(asked, use_tqdm=False)
        return torch.tensor([one.outputs.embedding for one in found])
