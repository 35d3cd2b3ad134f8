"""Lazy layers keep the first and the recent keys: exact where nothing is trimmed, bounded where it is."""

import pytest
import torch
from families import VOCABULARY, small_model

from layer_select.decoder import Decoder
from layer_select.serve.config import LazyKv
from layer_select.serve.engine import TransformersEngine
from layer_select.serve.lazy_kv import attention_share, generate
from layer_select.serve.prefix_cache import Prompt
from rayrun.config import ConfigError

FULL = ("llama", "llama31", "mistral", "qwen2", "qwen3", "qwen3_moe")
PROMPT = torch.randint(3, VOCABULARY, (40,), generator=torch.Generator().manual_seed(3)).tolist()
NEW = 24


def reference(model, prompt, count):
    """By the model alone: the whole text again for every token."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", FULL)
def test_what_is_not_trimmed_is_exact(family):
    model = small_model(family)
    decoder = Decoder(model)
    expected = reference(model, PROMPT, NEW)
    inside = LazyKv(first=4, recent=len(PROMPT) + NEW, threshold=1e-6)
    never = LazyKv(first=1, recent=2, threshold=1.01)
    assert generate(decoder, PROMPT, new_tokens=NEW).ids == expected
    assert generate(decoder, PROMPT, new_tokens=NEW, lazy=never).ids == expected
    found = generate(decoder, PROMPT, new_tokens=NEW, lazy=inside)
    assert found.ids == expected
    spared = family.startswith("qwen")  # their last layer is never trimmed
    assert found.lazy == list(range(decoder.num_layers - spared))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_lazy_layer_is_the_models_own_attention_over_the_keys_it_keeps(attention):
    """Against the whole text under a mask that hides from each token what had been trimmed."""
    model = small_model("llama")
    first, recent = 3, 8
    decoder = Decoder(model)
    model.set_attn_implementation(attention)
    found = generate(
        decoder, PROMPT, new_tokens=NEW, lazy=LazyKv(first=first, recent=recent, threshold=1e-6)
    )
    model.set_attn_implementation("eager")
    assert found.lazy == list(range(decoder.num_layers))
    total = len(PROMPT) + len(found.ids) - 1
    place = torch.arange(total)
    seen = place[None, :] <= place[:, None]
    # after the first generated token each sees `first`, the `recent` before it, and itself
    trimmed = place[:, None] > len(PROMPT)
    kept = (place[None, :] < first) | (place[None, :] >= place[:, None] - recent)
    hidden = ~(seen & (kept | ~trimmed))
    mask = torch.zeros(total, total).masked_fill(hidden, torch.finfo(torch.float32).min)
    ids = torch.tensor([[*PROMPT, *found.ids[:-1]]])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask[None, None]).logits[0]
    assert logits[len(PROMPT) - 1 :].argmax(-1).tolist() == found.ids


def test_memory_is_bounded_by_what_lazy_layers_keep():
    model = small_model("qwen3")
    decoder = Decoder(model)
    config = model.config
    per_token = 2 * config.num_key_value_heads * config.head_dim * 4
    total = len(PROMPT) + NEW - 1
    whole = generate(decoder, PROMPT, new_tokens=NEW)
    assert whole.cache_bytes == decoder.num_layers * total * per_token
    lazy = LazyKv(first=4, recent=12, threshold=1e-6)
    found = generate(decoder, PROMPT, new_tokens=NEW, lazy=lazy)
    assert found.cache_bytes == ((decoder.num_layers - 1) * 16 + total) * per_token


def test_a_layer_is_lazy_by_the_mean_over_its_heads_and_no_key_counts_twice():
    config = LazyKv(first=2, recent=3)
    attention = torch.zeros(1, 2, 1, 8)
    attention[0, 0, 0, [0, 4]] = torch.tensor([0.25, 0.75])  # key 4 is neither first nor recent
    attention[0, 1, 0, [1, 5, 7]] = torch.tensor([0.5, 0.25, 0.25])
    assert attention_share(attention, config) == pytest.approx((0.25 + 1.0) / 2)
    assert attention_share(attention[..., 4:], config) == pytest.approx((0.75 + 0.5) / 2)
    spread = torch.full((1, 2, 1, 4), 0.25)
    assert attention_share(spread, config) == pytest.approx(1.0)


def test_generation_ends_with_the_token_that_ends_it():
    decoder = Decoder(small_model("llama"))
    free = generate(decoder, PROMPT, new_tokens=NEW).ids
    end = free[5]
    stopped = generate(decoder, PROMPT, new_tokens=NEW, end=end).ids
    assert stopped == free[: free.index(end) + 1]


@pytest.mark.parametrize(
    ("family", "ids", "message"),
    [
        ("gemma2", PROMPT, "gemma2 has layers with a sliding window"),
        ("llama", [], "needs at least one token"),
    ],
)
def test_what_cannot_be_trimmed_is_refused(family, ids, message):
    with pytest.raises(ConfigError, match=message):
        generate(Decoder(small_model(family)), ids, new_tokens=1)


def continued(lengths):
    """A history that grows: prompts of so many tokens, each the beginning of the next."""
    ids = torch.randint(3, VOCABULARY, (lengths[-1],), generator=torch.Generator().manual_seed(5))
    return [Prompt(ids[:n].tolist(), [m for m in lengths if m <= n]) for n in lengths]


def hidden_under(decoder, prompt, dropped):
    """h by the model's own forward; queries from a place on do not see some keys."""
    total = len(prompt.ids)
    place = torch.arange(total)
    seen = place[None, :] <= place[:, None]
    for begin, (low, high) in dropped.items():
        later = (place[:, None] >= begin) & (place[:, None] < begin + 6)
        seen &= ~(later & (place[None, :] >= low) & (place[None, :] < high))
    mask = torch.zeros(total, total).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.no_grad():
        found = decoder.body(input_ids=torch.tensor([prompt.ids]), attention_mask=mask[None, None])
    return found.last_hidden_state[0, -1]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_who_continues_a_trimmed_prefix_sees_what_its_lazy_layers_hold(attention):
    model = small_model("llama")
    model.set_attn_implementation(attention)
    decoder = Decoder(model)
    first, second, third = continued((30, 36, 42))
    short = Prompt(first.ids[:9], [9])
    lazy = LazyKv(first=3, recent=8, threshold=1e-6)
    engine = TransformersEngine(decoder, batch_tokens=200, prefix_cache_bytes=1 << 20, lazy_kv=lazy)
    exact = TransformersEngine(decoder, batch_tokens=200, prefix_cache_bytes=0)
    close = {"rtol": 1e-4, "atol": 1e-5}
    # a prompt from scratch is exact, in the company of one that is too short to be trimmed
    torch.testing.assert_close(
        engine.last_hidden([first, short]), exact.last_hidden([first, short]), **close
    )
    assert engine.prefixes is not None
    per_token = 2 * model.config.num_key_value_heads * model.config.head_dim * 4
    per_token *= decoder.num_layers
    assert engine.prefixes.size_bytes == (11 + 9) * per_token  # 3 + 8 of 30, and all 9
    # one that continues a trimmed prefix beside one whose prefix is whole
    beside = Prompt([*short.ids, *second.ids[-6:]], [9, 15])
    found = engine.last_hidden([second, beside])
    expected = hidden_under(decoder, second, {30: (3, 30 - 8)})
    torch.testing.assert_close(found[0], expected, **close)
    torch.testing.assert_close(found[1], exact.last_hidden([beside])[0], **close)
    assert not torch.allclose(found[0], exact.last_hidden([second])[0], **close)
    # and again: what was computed under a mask is continued under the next
    expected = hidden_under(decoder, third, {30: (3, 30 - 8), 36: (3, 36 - 8)})
    torch.testing.assert_close(engine.last_hidden([third])[0], expected, **close)
    assert engine.prefixes.size_bytes == 2 * 11 * per_token


def test_prefixes_that_fit_into_what_is_kept_are_continued_exactly():
    decoder = Decoder(small_model("qwen3"))
    lazy = LazyKv(first=4, recent=40, threshold=1e-6)
    engine = TransformersEngine(decoder, batch_tokens=200, prefix_cache_bytes=1 << 20, lazy_kv=lazy)
    plain = TransformersEngine(decoder, batch_tokens=200, prefix_cache_bytes=0)
    for prompt in continued((30, 36, 42)):
        expected = plain.last_hidden([prompt])
        torch.testing.assert_close(engine.last_hidden([prompt]), expected, rtol=1e-5, atol=1e-5)
    assert engine.prefixes is not None
    assert engine.prefixes.hits == 2


def test_an_engine_refuses_lazy_layers_where_there_are_windows_or_no_threshold():
    options = {"batch_tokens": 64, "prefix_cache_bytes": 1 << 20, "lazy_kv": LazyKv()}
    with pytest.raises(ConfigError, match="sliding window, .* leave serve.engine.lazy_kv out"):
        TransformersEngine(Decoder(small_model("gemma2")), **options)
    unknown = small_model("qwen3")
    unknown.config.model_type = "other"
    with pytest.raises(ConfigError, match="lazy_kv.threshold must be given for other"):
        TransformersEngine(Decoder(unknown), **options)
