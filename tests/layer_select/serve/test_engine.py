"""h of every family: the same alone, in company, and behind a prefix that was held."""

import numpy as np
import pytest
import torch
from families import CONFIGS, VOCABULARY, small_model

from layer_select.decoder import Decoder
from layer_select.serve.engine import TransformersEngine
from layer_select.serve.prefix_cache import Prefix, PrefixCache, Prompt

LENGTHS = (3, 9, 9, 12, 17, 26)
"""Longer than the sliding windows of 4."""


def prompt(rng, length, start=()):
    """Titles of one to four tokens after what is there."""
    ids, ends = list(start), [len(start)] if start else []
    while len(ids) < length:
        ids += rng.integers(3, VOCABULARY, min(int(rng.integers(1, 5)), length - len(ids))).tolist()
        ends.append(len(ids))
    return Prompt(ids, ends)


@torch.no_grad()
def alone(decoder, one):
    """By the model's own forward: no batch, no mask, no cache."""
    ids = torch.tensor([one.ids])
    return decoder.body(input_ids=ids, use_cache=False).last_hidden_state[0, -1]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
def test_h_depends_neither_on_company_nor_on_prefixes(family):
    decoder = Decoder(small_model(family))
    rng = np.random.default_rng(0)
    firsts = [prompt(rng, length) for length in LENGTHS]
    longer = [prompt(rng, len(one.ids) + 3, one.ids) for one in firsts]
    after = [prompt(rng, len(one.ids) + int(rng.integers(1, 6)), one.ids) for one in longer]
    engine = TransformersEngine(decoder, batch_tokens=60, prefix_cache_bytes=1 << 20)
    plain = TransformersEngine(decoder, batch_tokens=60, prefix_cache_bytes=0)
    for prompts in (firsts, longer, after, after, firsts):
        expected = torch.stack([alone(decoder, one) for one in prompts])
        close(engine.last_hidden(prompts), expected)
        close(plain.last_hidden(prompts), expected)
    held = engine.prefixes
    assert held is not None
    # each continues, continues again and repeats; at last a prefix has been replaced by what
    # continued it, and is begun anew
    assert (held.hits, held.misses) == (3 * len(LENGTHS), 2 * len(LENGTHS))


def test_the_tokens_behind_a_history_are_no_part_of_a_prefix():
    decoder = Decoder(small_model("qwen3"))
    engine = TransformersEngine(decoder, batch_tokens=64, prefix_cache_bytes=1 << 20)
    question = [5, 6, 7]
    history = [11, 12, 13, 14]
    engine.last_hidden([Prompt([*history, *question], [2, 4])])
    longer = Prompt([*history, 15, *question], [2, 4, 5])
    close(engine.last_hidden([longer])[0], alone(decoder, longer))
    assert engine.prefixes is not None
    assert (engine.prefixes.hits, len(engine.prefixes)) == (1, 1)


def test_a_pass_that_does_not_fit_into_memory_is_halved_and_says_so():
    decoder = Decoder(small_model("llama"))
    rows = []

    def out_of_memory(module, arguments, keywords):
        rows.append(len(keywords["input_ids"]))
        if rows[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    decoder.body.register_forward_pre_hook(out_of_memory, with_kwargs=True)
    engine = TransformersEngine(decoder, batch_tokens=1000, prefix_cache_bytes=0)
    prompts = [Prompt([n, 4, 5], [3]) for n in range(3, 11)]
    with pytest.warns(UserWarning, match="memory does not suffice for") as said:
        found = engine.last_hidden(prompts)
    assert "for 8 prompts at once; serve.batch_tokens is 12 from here on" in str(said[0].message)
    assert rows == [8, 4, 2, 2, 4, 2, 2]
    rows.clear()
    torch.testing.assert_close(engine.last_hidden(prompts), found)
    assert rows == [2, 2, 2, 2]


def prefix(name, tokens):
    layers = [(torch.zeros(2, tokens, 4), torch.zeros(2, tokens, 4))]
    return Prefix(name, layers, tokens)


def test_a_cache_keeps_to_its_bytes_and_forgets_what_was_unused_longest():
    cache = PrefixCache(limit_bytes=10 * 64)
    prompts = [Prompt([n], [1]) for n in range(4)]
    for one, tokens in zip(prompts[:3], (3, 3, 4), strict=True):
        cache.put(prefix(one.keys()[0], tokens))
    assert cache.size_bytes == 640
    assert cache.longest(prompts[0]) is not None
    cache.put(prefix(prompts[3].keys()[0], 2))
    assert cache.size_bytes == (3 + 4 + 2) * 64
    assert cache.longest(prompts[1]) is None
    cache.put(prefix(b"too large", 11))
    assert len(cache) == 3


def test_what_is_continued_gives_way_to_what_continues_it():
    cache = PrefixCache(limit_bytes=10_000)
    short, long_ = Prompt([1, 2], [2]), Prompt([1, 2, 3], [2, 3])
    cache.put(prefix(short.keys()[-1], 2))
    found = cache.longest(long_)
    assert found is not None
    cache.put(prefix(long_.keys()[-1], 3), continues=found)
    assert (len(cache), cache.size_bytes) == (1, 3 * 64)
    assert cache.longest(short) is None


def test_prompts_share_a_prefix_by_their_tokens_alone():
    one, other = Prompt([1, 2, 3], [1, 3]), Prompt([1, 2, 4], [1, 2, 3])
    assert one.keys()[0] == other.keys()[0]
    assert not set(one.keys()[1:]) & set(other.keys()[1:])
