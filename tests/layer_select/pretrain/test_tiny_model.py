"""The trained decoder is a teacher, and an ordinary Hugging Face folder."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from layer_select.decoder import Decoder
from layer_select.task.config import LikelihoodTask
from layer_select.task.run import open_task
from rayrun.data.sequences import open_sequences


@pytest.fixture(scope="module")
def loaded(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    return model, AutoTokenizer.from_pretrained(tiny_model)


def opened(config, task, loaded, tiny_model):
    model, tokenizer = loaded
    head = (tiny_model / "item_head.safetensors").read_bytes()
    return open_task(
        config.data,
        task,
        tokenizer=tokenizer,
        vocab_size=model.config.vocab_size,
        item_head=head,
    )


def mean_metric(task, decoder, name, kept=None, shuffled=False):
    found = []
    objective = task.objective(decoder)
    for batch in task.batches("test", shuffled_targets=shuffled):
        with torch.no_grad():
            normed = decoder.finish(decoder.through(decoder.start(batch.ids, batch.mask), kept))
        found.append(objective.metrics(normed, batch)[name])
    return float(torch.cat(found).mean())


def test_it_beats_popularity_and_its_deep_layers_matter(
    tiny_config, tiny_training, tiny_model, loaded
):
    compared = tiny_training[1]["compared"]
    assert compared["difference"]["ndcg@10"]["low"] > 0
    assert compared["metrics"]["ndcg@10"] > compared["popularity"]["ndcg@10"]
    decoder = Decoder(loaded[0])
    assert decoder.num_layers == 12
    task = opened(tiny_config, tiny_config.task, loaded, tiny_model)
    whole = mean_metric(task, decoder, "ndcg@10")
    assert whole > 1.3 * mean_metric(task, decoder, "ndcg@10", kept=[])


def test_popularity_is_ranked_as_a_plain_count_ranks_it(tiny_config, tiny_training):
    compared, sequences = tiny_training[1]["compared"], open_sequences(tiny_config.data)
    counts = np.bincount(np.concatenate(sequences.training()), minlength=len(sequences.titles))
    found = []
    for items in sequences.histories:
        rank = sum(1 for count in counts if count >= counts[items[-1]])
        found.append(1 / np.log2(1 + rank) if rank <= 10 else 0.0)
    assert compared["samples"] == len(found)
    assert compared["popularity"]["ndcg@10"] == pytest.approx(np.mean(found), abs=1e-12)


def test_the_reloaded_folder_ranks_as_the_trained_decoder_did(
    tiny_config, tiny_training, tiny_model, loaded
):
    everyone = len(open_sequences(tiny_config.data).users)
    task = opened(
        tiny_config, tiny_config.task.model_copy(update={"test": everyone}), loaded, tiny_model
    )
    again = mean_metric(task, Decoder(loaded[0]), "mrr")
    assert again == pytest.approx(tiny_training[1]["compared"]["metrics"]["mrr"], rel=1e-5)


def test_the_likelihood_of_titles_follows_the_history(tiny_config, tiny_model, loaded):
    shared = {"max_history": 12, "max_tokens": 72, "calibration": 8, "validation": 0, "test": 200}
    decoder = Decoder(loaded[0])
    likelihood = opened(tiny_config, LikelihoodTask(**shared), loaded, tiny_model)
    right = mean_metric(likelihood, decoder, "token_nll")
    assert right < 0.99 * mean_metric(likelihood, decoder, "token_nll", shuffled=True)
