import torch

from infnet.model.tables import Brought, EmbeddingTables, Share
from infnet.schema import PADDING, UNKNOWN, FieldSlot, TableSpec


def test_padding_is_zero_and_stays_so_under_any_gradient(make_schema, make_batch):
    schema = make_schema()
    tables = EmbeddingTables(schema)
    embedded = tables(make_batch(schema, 8))
    loss = sum(x.square().sum() + x.sum() for x in embedded.sequences.values())
    loss.backward()
    gradient = tables.table("item").weight.grad
    assert tables.table("item").weight[PADDING].eq(0).all()
    assert gradient.is_sparse
    assert gradient.to_dense()[PADDING].eq(0).all()


def test_only_rows_of_the_batch_get_a_gradient(make_schema, make_batch):
    schema = make_schema()
    batch = make_batch(schema, 4)
    tables = EmbeddingTables(schema)
    tables(batch).fields["tab"].sum().backward()
    gradient = tables.table("tab").weight.grad.coalesce()
    assert gradient.indices()[0].tolist() == sorted({*batch.ids[:, 2].tolist()})


def test_an_event_is_its_embeddings_side_by_side(make_schema, make_batch):
    schema = make_schema()
    batch = make_batch(schema, 4)
    tables = EmbeddingTables(schema)
    event = tables(batch).sequences["clicked"][0, 1]
    item, author = batch.sequences["clicked"].ids[0, 1]
    expected = torch.cat([tables.table("item").weight[item], tables.table("author").weight[author]])
    assert torch.equal(event, expected)


def test_an_unseen_id_gets_the_mean_of_the_known_rows_where_its_table_says_so(make_schema):
    known = {
        "item": TableSpec(rows=20, dim=8, cold_start="mean"),
        "author": TableSpec(rows=12, dim=16),
        "tab": TableSpec(rows=2, dim=8, cold_start="mean"),
    }
    tables = EmbeddingTables(make_schema(tables=known))
    before = {name: tables.table(name).weight.detach().clone() for name in known}
    tables.fill_cold_start()
    item = tables.table("item").weight
    torch.testing.assert_close(item[UNKNOWN], before["item"][2:].mean(0))
    assert torch.equal(item[2:], before["item"][2:])
    assert torch.equal(tables.table("author").weight, before["author"])
    assert torch.equal(tables.table("tab").weight, before["tab"])  # nothing known to average


def test_a_table_may_have_any_name(make_schema, make_batch):
    schema = make_schema(
        tables={"items": TableSpec(rows=9, dim=8), "a.b": TableSpec(rows=9, dim=8)},
        fields=(FieldSlot(name="items", table="items"), FieldSlot(name="x", table="a.b")),
        sequences=(),
    )
    assert set(EmbeddingTables(schema)(make_batch(schema, 2)).fields) == {"items", "x"}


def test_copies_widen_every_embedding_and_zero_copies_build_none(make_schema, make_batch):
    schema = make_schema()
    batch = make_batch(schema, 2)
    assert EmbeddingTables(schema, copies=3)(batch).fields["author"].shape == (2, 48)
    none = EmbeddingTables(schema, copies=0)
    assert not list(none.parameters())
    assert torch.equal(none(batch).dense, batch.dense)


def test_rows_that_were_brought_are_looked_up_as_in_a_whole_table(make_schema, make_batch):
    """Of `item`, which a field and two sequences share; the gradient goes to the rows brought."""
    schema = make_schema()
    batch = make_batch(schema, 8)
    torch.manual_seed(0)
    whole = EmbeddingTables(schema)
    torch.manual_seed(0)
    split = EmbeddingTables(schema, share=Share(1, 3, frozenset({"item"})))
    assert split.table("item").weight.shape == (7, 8)
    (ids,) = split.needed(batch).values()
    events = [batch.sequences[name].ids[..., 0] for name in ("clicked", "liked")]
    found = {*batch.ids[:, 0].tolist(), *(i for e in events for i in e.flatten().tolist())}
    assert ids.tolist() == sorted(found - {PADDING})
    ids = torch.cat([torch.tensor([PADDING]), ids])
    brought = Brought(ids, whole.table("item").weight[ids].detach().requires_grad_())
    expected, embedded = whole(batch), split(batch, {"item": brought})
    for each in ("fields", "sequences"):
        for name, values in getattr(expected, each).items():
            assert torch.equal(getattr(embedded, each)[name], values), name
    for inputs in (expected, embedded):
        sum(
            x.square().sum() for x in (*inputs.fields.values(), *inputs.sequences.values())
        ).backward()
    gradient = brought.rows.grad.coalesce()
    assert torch.equal(gradient.values(), whole.table("item").weight.grad.coalesce().values())
    assert PADDING not in ids[gradient.indices()[0]]
