"""Parts are disjoint, batches are fixed, and nothing of the future is in a prompt."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from layer_select.opened import open_inputs
from layer_select.task.config import HeadTask, LikelihoodTask, YesNoTask
from layer_select.task.head import ITEM_HEAD
from layer_select.task.run import RecommendationTask, open_task
from rayrun.config import ConfigError

SIZES = {"calibration": 40, "validation": 25, "test": 25, "micro_batch": 8, "max_tokens": 40}


@pytest.fixture
def opened(titled_data, tokenizer):
    def make(task, data=titled_data):
        return open_task(data, task, tokenizer=tokenizer, vocab_size=97)

    return make


def test_leave_one_out_holds_the_last_two_events_back(opened):
    task = opened(HeadTask(**SIZES))
    histories = task.sequences.histories
    behind = {"test": 1, "validation": 2}
    seen = set()
    for part, samples in task.samples.items():
        assert len(samples) == len({(s.user, s.position) for s in samples})
        for sample in samples:
            items = histories[sample.user]
            if part == "calibration":
                assert 1 <= sample.position <= len(items) - 3
            else:
                assert sample.position == len(items) - behind[part]
            assert sample.item == items[sample.position]
            begin = max(sample.position - task.task.max_history, 0)
            assert sample.history.tolist() == items[begin : sample.position].tolist()
            seen.add((sample.user, sample.position))
    assert len(seen) == sum(map(len, task.samples.values()))


def test_fewer_samples_are_the_first_of_more_whatever_other_users_there_are(opened, titled_data):
    def names(task):
        users = task.sequences.users
        return [(users[s.user], s.position) for s in task.samples["calibration"]]

    many, few = (opened(HeadTask(**{**SIZES, "calibration": n})) for n in (30, 6))
    assert names(few) == names(many)[:6]
    half = opened(HeadTask(**SIZES), titled_data.model_copy(update={"users": 15}))
    kept = [name for name in names(opened(HeadTask(**{**SIZES, "calibration": 99})))]
    left = set(half.sequences.users)
    assert [name for name in names(half)] == [name for name in kept if name[0] in left][
        : len(names(half))
    ]


def test_a_calibration_sample_that_is_a_test_sample_under_another_name_is_left_out(
    tmp_path, opened, titled_data
):
    events = {"person": "Go Zoo Tea Sea Sun Oak", "twin": "Go Zoo Tea"}
    rows = [
        (user, title, time, title)
        for user, titles in events.items()
        for time, title in enumerate(titles.split())
    ]
    columns = zip(
        ("user", "item", "time", "title"), map(list, zip(*rows, strict=True)), strict=True
    )
    pq.write_table(pa.table(dict(columns)), tmp_path / "log.parquet")
    source = titled_data.source.model_copy(update={"path": str(tmp_path / "log.parquet")})
    task = opened(HeadTask(**SIZES), titled_data.model_copy(update={"source": source}))
    users = task.sequences.users
    found = {(users[s.user], s.position) for s in task.samples["calibration"]}
    # Position 1 is what twin is validated on, position 2 what twin is tested on.
    assert found == {("person", 3)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"calibration_from": "test"},
            r"calibration overlaps test: it asks for event \d+ of user 'u\d+', which is a target of "
            r"test; task.calibration_from is 'test': draw it from train, or set task.test: 0",
        ),
        (
            {"calibration_from": "test", "test": 0},
            r"calibration overlaps validation: it shows in a history event",
        ),
        (
            {"calibration_from": "validation", "test": 0},
            r"calibration overlaps validation: it asks",
        ),
    ],
)
def test_calibration_that_overlaps_another_part_is_refused(opened, changes, message):
    with pytest.raises(ConfigError, match=message):
        opened(HeadTask(**{**SIZES, "calibration": 99, **changes}))


def test_calibration_may_use_what_nothing_else_does(opened):
    task = opened(HeadTask(**{**SIZES, "calibration_from": "validation", "validation": 0}))
    assert len(task.samples["calibration"]) > 20


@pytest.mark.parametrize("kind", [HeadTask, YesNoTask, LikelihoodTask])
def test_batches_are_fixed_and_their_rows_are_the_prompts(opened, kind):
    task, again = opened(kind(**SIZES)), opened(kind(**SIZES))
    assert task.digest == again.digest
    assert task.digest != opened(kind(**{**SIZES, "seed": 1})).digest
    batches = task.batches("calibration")
    numbers = torch.cat([batch.sample for batch in batches])
    assert sorted(numbers.tolist()) == list(range(40))
    lengths = [int(row.sum()) for batch in batches for row in batch.mask]
    assert lengths == sorted(lengths)
    for batch, other in zip(batches, again.batches("calibration"), strict=True):
        assert torch.equal(batch.ids, other.ids)
        assert torch.equal(batch.target, other.target)
        assert (batch.mask[:, -1] == 1).all()
        for row, number in enumerate(batch.sample.tolist()):
            sample = task.samples["calibration"][number]
            asked = sample.item if kind is YesNoTask else None
            tokens = task.prompts.of(sample.history, asked)
            if kind is LikelihoodTask:
                assert (
                    batch.target_ids[row][batch.target_valid[row]].tolist()
                    == task.prompts.items[sample.item]
                )
                tokens = tokens + task.prompts.items[sample.item]
            assert batch.ids[row][batch.mask[row] == 1].tolist() == tokens


@pytest.mark.parametrize("kind", [HeadTask, YesNoTask, LikelihoodTask])
def test_shuffled_targets_are_the_same_targets_behind_other_prompts(opened, kind):
    task = opened(kind(**SIZES))
    name = "label" if kind is YesNoTask else "item"
    right, dealt = task.samples_of("test"), task.samples_of("test", shuffled_targets=True)
    assert [s.history.tobytes() for s in right] == [s.history.tobytes() for s in dealt]
    values = [[getattr(s, name) for s in samples] for samples in (right, dealt)]
    assert sorted(values[0]) == sorted(values[1])
    assert values[0] != values[1]
    assert sum(batch.size for batch in task.batches("test", shuffled_targets=True)) == len(right)


def test_a_prompt_holds_whole_titles_only_and_drops_the_oldest(opened, tokenizer):
    task = opened(HeadTask(**{**SIZES, "max_tokens": 14, "max_history": 50}))
    cut = 0
    for sample in task.samples["test"]:
        ids = task.prompts.of(sample.history)
        assert len(ids) <= 14
        assert ids[0] == tokenizer.bos_token_id
        titles = [task.sequences.titles[item] for item in sample.history]
        shown = task.prompts.text(ids[1:]).replace(" ", "").splitlines()
        assert shown == [t.replace(" ", "") for t in titles[len(titles) - len(shown) :]]
        cut += len(shown) < len(titles)
    assert cut > 5


def test_the_description_shows_prompts_in_any_script(opened):
    found = opened(HeadTask(**{**SIZES, "test": 28})).describe()
    assert found["samples"] == {"validation": 25, "test": 28, "calibration": 40}
    assert found["item_vectors"] == "mean title embedding, P = identity"
    assert found["counts"]["titles_duplicate"] == 1
    assert "Go (2)" in opened(HeadTask(**SIZES)).sequences.titles


@pytest.mark.parametrize(
    ("task", "tokens", "vocabulary", "message"),
    [
        (
            HeadTask(**SIZES),
            None,
            10,
            r"the tokenizer does not match the model: it gives '.*' the token \d+, the embedding has "
            r"10 rows; take the tokenizer that lies beside the model",
        ),
        (
            HeadTask(**{**SIZES, "max_tokens": 5}),
            None,
            97,
            r"task.max_tokens is 5, but a prompt with the longest title of the catalogue needs \d+",
        ),
        (
            YesNoTask(**SIZES, answers=("no", "nope")),
            None,
            97,
            r"task.answers must begin with different tokens, \['no', 'nope'\] both begin with",
        ),
        (
            HeadTask(**SIZES),
            "silent",
            97,
            r"the tokenizer has no token for '.*'; it does not match",
        ),
        (
            HeadTask(**SIZES),
            "strict",
            97,
            r"the tokenizer cannot read these titles .* take the tok",
        ),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(
    titled_data, tokenizer, task, tokens, vocabulary, message
):
    unfit = {
        "silent": models.BPE({"a": 0}, []),  # drops what it does not know
        "strict": models.WordLevel({"a": 0}, unk_token="?"),  # and this one fails
    }
    words = tokenizer
    if tokens:
        words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(unfit[tokens]))
    with pytest.raises(ConfigError, match=message):
        open_task(titled_data, task, tokenizer=words, vocab_size=vocabulary)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": {"item": "x"}}, r"prompt.item must hold \{title\} exactly once, found 'x'"),
        ({"question": "{title}{title}"}, r"question must hold \{title\} exactly once"),
    ],
)
def test_a_template_without_its_title_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        YesNoTask.model_validate({**SIZES, **changes})


def test_the_digest_is_of_the_item_head_too(tiny_config, tiny_model):
    config = tiny_config.model_copy(
        update={"inputs": tiny_config.inputs.model_copy(update={"model": str(tiny_model)})}
    )
    one = open_inputs(config).task
    found = open_inputs(config).checkpoint.file(ITEM_HEAD)
    other = RecommendationTask(one.task, one.sequences, one.prompts, found[:-1] + b"\x00")
    without = RecommendationTask(one.task, one.sequences, one.prompts)
    assert len({one.digest, other.digest, without.digest}) == 3
