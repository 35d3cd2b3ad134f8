import paper
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from infnet.model.infnet import INFNetConfig, PooledTaskProxies
from infnet.model.recommender import Recommender
from infnet.schema import SequenceSlot
from infnet.tasks import BinaryTask
from rayrun.config import ConfigError, validate

VARIANTS = {
    "default": {},
    "pre": {"pgu_source": "pre"},
    "no_residual": {"residual": False},
    "heads": {"num_heads": 4},
    "norm": {"layer_norm": True},
    "pooled": {"task_proxies": PooledTaskProxies(count=3), "num_sequence_proxies": 2},
    "two_blocks": {"num_blocks": 2, "pgu_source": "pre", "residual": False},
    "linear": {"proxy_hidden": (), "gate_hidden": (), "head_hidden": ()},
}


def build(schema, **changes):
    torch.manual_seed(0)
    return Recommender(INFNetConfig(token_dim=16, **changes), schema)


@pytest.fixture(params=VARIANTS, ids=str)
def variant(request):
    return VARIANTS[request.param]


def test_infnet_is_the_paper_row_by_row(make_schema, make_batch, variant):
    # Plain binary heads: the twin ends at the towers. One row has no history at all.
    schema = make_schema(tasks={"click": BinaryTask(label="c"), "like": BinaryTask(label="l")})
    model = build(schema, **variant).double()
    batch = make_batch(schema, 4)
    for history in batch.sequences.values():
        history.lengths[1] = 0
        history.ids[1] = 0
    inputs = model.tables(batch)
    inputs = inputs._replace(
        dense=inputs.dense.double(), ages={k: v.double() for k, v in inputs.ages.items()}
    )
    ours, twin = model.network(inputs), paper.infnet(model.network, inputs)
    for task in schema.tasks:
        torch.testing.assert_close(ours[task], torch.stack([row[task] for row in twin]))
    parameters = list(model.network.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(sum(x.square().sum() for x in ours.values()), parameters),
        torch.autograd.grad(
            sum(x.square().sum() for row in twin for x in row.values()), parameters
        ),
    )


def test_every_parameter_of_every_variant_reaches_an_output(make_schema, make_batch, variant):
    schema = make_schema()
    model = build(schema, **variant)
    sum(x.square().sum() for x in model(make_batch(schema, 8)).values()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    zero = [n for n, p in model.network.named_parameters() if not p.grad.count_nonzero()]
    assert (without, zero) == ([], [])


def test_with_one_task_only_its_attention_weights_are_idle(make_schema, make_batch):
    """Attention over one token is that token: queries and keys of `read_task` cannot matter."""
    schema = make_schema(tasks={"click": BinaryTask(label="click")})
    model = build(schema)
    model(make_batch(schema, 8))["click"].square().sum().backward()
    zero = {n for n, p in model.network.named_parameters() if not p.grad.count_nonzero()}
    flow = "heterogeneous.flows.read_task"
    assert zero == {f"blocks.{b}.{flow}.{w}" for b in (0, 1) for w in ("query", "key")}


def test_the_last_block_builds_only_the_task_path(make_schema):
    blocks = build(make_schema()).network.blocks
    assert blocks[-1].heterogeneous.readers == {
        "categorical": ["task_proxies", "task"],
        "sequence": ["task_proxies", "task"],
    }
    assert blocks[-1].homogeneous.kinds == ("task",)
    assert blocks[-2].homogeneous.kinds == ("categorical", "sequence", "task")


def test_gating_with_earlier_proxies_leaves_out_what_only_a_later_gate_would_read(make_schema):
    blocks = build(make_schema(), pgu_source="pre").network.blocks
    readers = [
        {r for readers in block.heterogeneous.readers.values() for r in readers} for block in blocks
    ]
    assert readers == [
        {"categorical", "sequence", "task_proxies", "task"},
        {"task_proxies", "task"},
        {"task"},
    ]


def test_without_sequences_no_part_for_them_is_built(make_schema, make_batch):
    schema = make_schema(sequences=())
    model = build(schema)
    sum(x.square().sum() for x in model(make_batch(schema, 8)).values()).backward()
    assert not [n for n, _ in model.named_parameters() if "sequence" in n]
    assert all(p.grad.count_nonzero() for p in model.network.parameters())


def test_permuting_a_history_changes_nothing(make_schema, make_batch):
    schema = make_schema()
    model, batch = build(schema), make_batch(schema, 8)
    before = model(batch)
    for history in batch.sequences.values():
        for row, length in enumerate(history.lengths):
            order = torch.randperm(int(length))
            history.ids[row, :length] = history.ids[row, order]
            history.ages[row, :length] = history.ages[row, order]
    after = model(batch)
    for task in schema.tasks:
        torch.testing.assert_close(after[task], before[task], rtol=0, atol=1e-6)


@pytest.mark.parametrize("histories", [1, 2])
@pytest.mark.parametrize("name", [n for n, v in VARIANTS.items() if not v.get("layer_norm")])
def test_rows_can_share_a_history_instead_of_each_having_a_copy(
    make_schema, make_batch, name, histories
):
    schema = make_schema()
    model = build(schema, **VARIANTS[name]).double()
    inputs = model.tables(make_batch(schema, 6))._replace(
        dense=make_batch(schema, 6).dense.double()
    )
    few = {
        of: {n: each[3 : 3 + histories] for n, each in getattr(inputs, of).items()}
        for of in ("sequences", "valid", "ages")
    }
    copied = {
        of: {n: each.repeat_interleave(6 // histories, dim=0) for n, each in parts.items()}
        for of, parts in few.items()
    }
    shared = model.network(inputs._replace(**few))
    expected = model.network(inputs._replace(**copied))
    for task in schema.tasks:
        torch.testing.assert_close(shared[task], expected[task], rtol=1e-12, atol=1e-12)


def test_no_block_writes_the_tokens_of_a_history_anew(make_schema, make_batch):
    schema = make_schema()
    model = build(schema)
    tokens, proxies = model.network.initial(model.tables(make_batch(schema, 4)))
    after, _ = model.network.blocks[0](tokens, proxies)
    assert after.sequence.base is tokens.sequence.base
    assert not torch.equal(after.sequence.gated, tokens.sequence.gated)


@pytest.mark.parametrize("option", [{"positions": True}, {"decay": 0.5}])
def test_with_positions_or_decay_the_order_of_events_matters(make_schema, make_batch, option):
    slot = SequenceSlot(name="s", max_length=6, tables=("item",), fields=("item",), **option)
    schema = make_schema(sequences=(slot,))
    model, batch = build(schema), make_batch(schema, 3)
    before = model(batch)["click"].detach()
    batch.sequences["s"].ids[0] = batch.sequences["s"].ids[0].flip(0)
    assert not torch.equal(model(batch)["click"][0], before[0])


def test_the_cost_grows_linearly_with_the_history(make_schema, make_batch):
    counts = []
    for length in (20, 40, 60):
        slot = SequenceSlot(name="s", max_length=length, tables=("item",), fields=("item",))
        schema = make_schema(sequences=(slot,))
        model, batch = build(schema), make_batch(schema, 1)
        with FlopCounterMode(display=False) as counter:
            sum(x.sum() for x in model(batch).values()).backward()
        counts.append(counter.get_total_flops())
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0


def test_shared_tokens_can_start_from_task_tokens(make_schema):
    tokens = build(make_schema(), shared_init="task_tokens").network.task_tokens
    assert torch.equal(tokens.shared, tokens.task[:2])


def test_bf16_error_is_of_the_size_of_bf16_rounding(make_schema, make_batch):
    schema = make_schema()
    model, batch = build(schema), make_batch(schema, 16)
    exact = model(batch)["click"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(batch)["click"].float()
    # Half a unit in the last of 8 bits is 2⁻⁹; a path through 3 blocks rounds some tens of times.
    assert (rough - exact).abs().max() < 32 * 2**-9 * exact.abs().max()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"num_blocks": 1}, "num_blocks must be at least 2, found 1"),
        ({"num_heads": 3}, r"token_dim \(64\) must be a multiple of num_heads \(3\)"),
        ({"num_categorical_proxies": 0}, "num_categorical_proxies must be at least 1, found 0"),
        (
            {"task_proxies": {"type": "pooled", "count": 0}},
            r"task_proxies\.count must be at least 1, found 0",
        ),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), found 1"),
        ({"proxy_hidden": [0]}, r"proxy_hidden must hold widths of at least 1, found \(0,\)"),
    ],
)
def test_impossible_settings_are_refused(raw, message):
    with pytest.raises(ConfigError, match=message):
        validate(INFNetConfig, raw, where="model")


def test_a_schema_of_sequences_alone_is_refused(make_schema):
    with pytest.raises(ConfigError, match="needs at least one feature that is not a sequence"):
        build(make_schema(fields=(), dense=()))
