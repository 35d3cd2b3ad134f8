"""The answer of a bundle to its own sample, by a decoder made from one of its models."""

import torch

from layer_select.decoder import Decoder
from layer_select.export.bundle import Bundle, top
from layer_select.export.ranking import last_hidden
from layer_select.sources import HuggingFace
from layer_select.task.batch import TaskBatch
from layer_select.task.prompts import Prompts
from rayrun.config import ConfigError, Json


def answered(bundle: Bundle, decoder: Decoder) -> list[Json]:
    """`{"item", "title", "score"}` of the best for `bundle.sample["request"]`, by what is in the
    bundle alone.

    Raises:
        ConfigError: the sample names an item that the catalogue does not have, or the vectors are
            of another width than the decoder.
    """
    history, k = bundle.sample["request"]["history"], int(bundle.sample["request"]["k"])
    numbers = bundle.numbers()
    if strange := [item for item in history if item not in numbers]:
        raise ConfigError(
            f"{bundle.uri}: the sample names the item {strange[0]!r}, which the catalogue of "
            f"{len(numbers)} items does not have; export the bundle again"
        )
    width = int(decoder.config.hidden_size)
    if bundle.vectors.shape[1] != width:
        raise ConfigError(
            f"{bundle.uri}: item vectors of width {bundle.vectors.shape[1]} belong to another "
            f"model, this one's is {width}; export the bundle again"
        )
    chosen = [numbers[item] for item in history[-bundle.prompt.max_history :]]
    tokenizer = HuggingFace(path=bundle.model).open().tokenizer()
    asked = sorted(set(chosen))  # only these titles are needed as tokens
    prompts = Prompts(
        tokenizer,
        int(decoder.config.vocab_size),
        bundle.prompt.task(),
        [bundle.titles[number] for number in asked],
    )
    row = prompts.of(torch.tensor([asked.index(number) for number in chosen]).numpy())
    ids, zero = torch.tensor([row]), torch.zeros(1, dtype=torch.int64)
    batch = TaskBatch(ids=ids, mask=torch.ones_like(ids), sample=zero, target=zero)
    scores = last_hidden(decoder, batch)[0] @ bundle.vectors.T
    return top(bundle.items, bundle.titles, scores, k)
