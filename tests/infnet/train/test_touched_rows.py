"""Row-wise optimizers against torch's, and what they must leave alone."""

import pytest
import torch
from torch import nn

from infnet.config import EmbeddingOptimizer
from infnet.train.rows import EPSILON, RowOptimizer, exchange
from infnet.train.table_files import WHOLE, SavedTables, save
from infnet.train.touched import Touched
from rayrun.ray.worker import SingleWorker

ROWS, WIDTH = 12, 4


class Together(SingleWorker):
    """One of two workers, told what a gather would return."""

    world_size = 2

    def __init__(self, parts, directory):
        super().__init__(directory)
        self._parts = parts

    def gather_rows(self, rows):
        return self._parts.pop(0)


def tables(*widths, seed=0):
    torch.manual_seed(seed)
    return nn.ModuleList(nn.Embedding(ROWS, width, padding_idx=0, sparse=True) for width in widths)


def train(module, optimizer, worker, batches, scale=1.0):
    for ids in batches:
        loss = sum((table(ids).pow(2).sum(dim=1) * (1 + ids)).sum() for table in module)
        (loss * scale).backward()
        optimizer.step(worker, loss_scale=scale)


BATCHES = [torch.tensor(ids) for ids in ([1, 2, 2, 7], [7, 7, 0], [3, 1, 11, 11, 11], [2])]


@pytest.fixture
def worker(tmp_path):
    return SingleWorker(tmp_path)


def reference(kind, batches, lr=0.1):
    """torch's own sparse optimizers, on the same table and losses."""
    module = tables(WIDTH)
    make = torch.optim.SparseAdam if kind == "adam" else torch.optim.Adagrad
    optimizer = make(list(module.parameters()), lr=lr)
    for ids in batches:
        optimizer.zero_grad(set_to_none=True)
        (module[0](ids).pow(2).sum(dim=1) * (1 + ids)).sum().backward()
        optimizer.step()
    return module[0].weight


@pytest.mark.parametrize("kind", ["adam", "adagrad"])
def test_equals_the_sparse_optimizer_of_torch(kind, worker):
    module = tables(WIDTH)
    train(module, RowOptimizer(module, EmbeddingOptimizer(type=kind, lr=0.1)), worker, BATCHES)
    torch.testing.assert_close(module[0].weight, reference(kind, BATCHES), rtol=1e-6, atol=1e-7)


def test_adam_equals_dense_adam_where_every_row_is_touched_every_step(worker):
    everything = [torch.arange(ROWS)] * 4
    module, dense = tables(WIDTH), tables(WIDTH)
    train(module, RowOptimizer(module, EmbeddingOptimizer(lr=0.1)), worker, everything)
    weight = nn.Parameter(dense[0].weight.detach().clone())
    optimizer = torch.optim.Adam([weight], lr=0.1)
    for ids in everything:
        optimizer.zero_grad()
        (weight[1:].pow(2).sum(dim=1) * (1 + ids[1:])).sum().backward()
        optimizer.step()
    torch.testing.assert_close(module[0].weight, weight, rtol=1e-5, atol=1e-6)


def test_rowwise_adagrad_divides_by_the_root_of_the_summed_mean_square(worker):
    module = tables(WIDTH)
    expected = module[0].weight.detach().clone().double()
    total = torch.zeros(ROWS, dtype=torch.double)
    for ids in BATCHES:
        gradient = torch.zeros(ROWS, WIDTH, dtype=torch.double)
        for i in ids.tolist():
            if i:
                gradient[i] += 2 * expected[i] * (1 + i)
        total += gradient.pow(2).mean(dim=1)
        change = 0.1 * gradient / (total.sqrt() + EPSILON["rowwise_adagrad"])[:, None]
        expected -= change
    config = EmbeddingOptimizer(type="rowwise_adagrad", lr=0.1)
    train(module, RowOptimizer(module, config), worker, BATCHES)
    torch.testing.assert_close(module[0].weight.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["adam", "adagrad", "rowwise_adagrad"])
@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_rows_not_in_the_batch_stay_bit_for_bit(kind, l2, worker):
    module = tables(WIDTH)
    before = module[0].weight.detach().clone()
    optimizer = RowOptimizer(module, EmbeddingOptimizer(type=kind, lr=0.1, l2=l2))
    train(module, optimizer, worker, BATCHES)
    untouched = [0, 4, 5, 6, 8, 9, 10]
    assert torch.equal(module[0].weight[untouched], before[untouched])
    assert not optimizer.state[next(iter(optimizer.state))][untouched].any()
    assert (module[0].weight[[1, 2, 3, 7, 11]] != before[[1, 2, 3, 7, 11]]).all()


def test_l2_counts_a_row_once_however_often_it_occurs(worker):
    """With a loss whose gradient is 0, the change is that of the gradient l2·θ alone."""
    config = EmbeddingOptimizer(type="adagrad", lr=0.1, l2=0.5)
    results = []
    for ids in ([5], [5, 5, 5, 5]):
        module = tables(WIDTH)
        (module[0](torch.tensor(ids)) * 0).sum().backward()
        RowOptimizer(module, config).step(worker)
        results.append(module[0].weight.detach())
    assert torch.equal(results[0], results[1])
    gradient = 0.5 * tables(WIDTH)[0].weight[5]
    expected = tables(WIDTH)[0].weight[5] - 0.1 * gradient / gradient.abs()
    torch.testing.assert_close(results[0][5], expected, rtol=1e-5, atol=1e-6)


def test_the_scale_of_the_loss_is_taken_out_again(worker):
    """A power of two scales floats without rounding: bit for bit the same."""
    plain, scaled = tables(WIDTH), tables(WIDTH)
    config = EmbeddingOptimizer(lr=0.1, l2=0.01)
    train(plain, RowOptimizer(plain, config), worker, BATCHES)
    train(scaled, RowOptimizer(scaled, config), worker, BATCHES, scale=4.0)
    assert torch.equal(plain[0].weight, scaled[0].weight)


def test_rate_multiplies_the_learning_rate(worker):
    slow, half = tables(WIDTH), tables(WIDTH)
    for module, lr, rate in ((slow, 0.05, 1.0), (half, 0.1, 0.5)):
        module[0](BATCHES[0]).sum().backward()
        RowOptimizer(module, EmbeddingOptimizer(lr=lr)).step(worker, rate=rate)
    assert torch.equal(slow[0].weight, half[0].weight)


def test_a_table_without_gradients_is_left_alone(worker):
    module = tables(WIDTH, 2)
    before = module[1].weight.detach().clone()
    module[0](BATCHES[0]).sum().backward()
    RowOptimizer(module, EmbeddingOptimizer()).step(worker)
    assert torch.equal(module[1].weight, before)
    assert module[0].weight.grad is None


def test_a_dense_gradient_is_refused(worker):
    module = nn.ModuleList([nn.Embedding(ROWS, WIDTH)])
    module[0](BATCHES[0]).sum().backward()
    with pytest.raises(ValueError, match=r"the gradient of embedding table 0\.weight is dense"):
        RowOptimizer(module, EmbeddingOptimizer()).step(worker)


def test_exchange_adds_equal_rows_of_all_workers_in_every_table(tmp_path):
    """Worker 0 holds rows 1 and 5 of table a; worker 1 rows 5 and 9 of a and row 2 of b."""
    ones = {
        "a": Touched(torch.tensor([1, 5]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])),
        "b": Touched(torch.empty(0, dtype=torch.int64), torch.empty(0, 1)),
    }
    twos = {
        "a": Touched(torch.tensor([5, 9]), torch.tensor([[10.0, 20.0], [5.0, 6.0]])),
        "b": Touched(torch.tensor([2]), torch.tensor([[7.0]])),
    }
    sent = [
        [torch.tensor([2, 0]), torch.tensor([2, 1])],
        [torch.tensor([1, 5]), torch.tensor([5, 9, 2])],
        [torch.tensor([1.0, 2, 3, 4]), torch.tensor([10.0, 20, 5, 6, 7])],
    ]
    for mine in (ones, twos):
        found = exchange(mine, Together(list(sent), tmp_path))
        assert found["a"].rows.tolist() == [1, 5, 9]
        assert found["a"].gradients.tolist() == [[1, 2], [13, 24], [5, 6]]
        assert found["b"].rows.tolist() == [2]
        assert found["b"].gradients.tolist() == [[7]]


def test_a_saved_state_continues_bit_for_bit(worker, tmp_path):
    config = EmbeddingOptimizer(lr=0.1)
    through, halves = tables(WIDTH), tables(WIDTH)
    train(through, RowOptimizer(through, config), worker, BATCHES)
    first = RowOptimizer(halves, config)
    train(halves, first, worker, BATCHES[:2])
    save(tmp_path, "rows", first.state_dict(), WHOLE, set())
    second, saved = RowOptimizer(halves, config), SavedTables(tmp_path, "rows")
    for name, tensor in second.state.items():
        saved.fill(name, tensor, ROWS, WHOLE)
    second.steps = int(saved.whole["steps"])
    train(halves, second, worker, BATCHES[2:])
    assert torch.equal(through[0].weight, halves[0].weight)
