import pytest
import torch

from infnet.model.heads import Heads
from infnet.tasks import BinaryTask, ConditionalTask, ZilnTask, parents_first

CLICK = BinaryTask(label="click")
BUY = ConditionalTask(label="buy", given="click")


def test_a_conditional_probability_is_multiplied_by_its_parents():
    a, b = torch.randn(2, 9, 1, dtype=torch.float64)
    torch.testing.assert_close(BUY.predict(BUY.compose(b, a)), (a.sigmoid() * b.sigmoid())[:, 0])


def test_the_product_keeps_its_digits_and_its_gradient_at_extreme_logits():
    a = torch.tensor([[90.0], [-90.0], [90.0]], requires_grad=True)
    b = torch.tensor([[90.0], [-90.0], [-90.0]], requires_grad=True)
    logit = BUY.compose(b, a)
    # 1 − σ(a)σ(b) ≈ 2 e⁻⁹⁰;  σ(a)σ(b) ≈ e⁻¹⁸⁰;  σ(a)σ(b) ≈ e⁻⁹⁰
    expected = torch.tensor([[90 - torch.tensor(2.0).log()], [-180.0], [-90.0]])
    torch.testing.assert_close(logit, expected)
    logit.sum().backward()
    torch.testing.assert_close(a.grad, torch.tensor([[0.5], [1.0], [0.0]]))


def test_heads_multiply_along_a_chain_of_parents_in_any_order():
    torch.manual_seed(0)
    pay = ConditionalTask(label="pay", given="buy")
    heads = Heads({"pay": pay, "buy": BUY, "click": CLICK}, 4).double()
    x = list(torch.randn(3, 2, 4, dtype=torch.float64))
    p = [tower(one).sigmoid() for tower, one in zip(heads.towers, x, strict=True)]
    logits = heads(x)
    assert list(logits) == ["pay", "buy", "click"]
    torch.testing.assert_close(logits["click"].sigmoid(), p[2])
    torch.testing.assert_close(logits["buy"].sigmoid(), p[2] * p[1])
    torch.testing.assert_close(logits["pay"].sigmoid(), p[2] * p[1] * p[0])


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"buy": BUY}, r"tasks\.buy\.given must name one of \['buy'\], found 'click'"),
        (
            {"buy": BUY, "click": ZilnTask(label="x")},
            r"tasks\.buy\.given must name a binary or conditional task, found 'click'",
        ),
        (
            {
                "a": ConditionalTask(label="a", given="b"),
                "b": ConditionalTask(label="b", given="a"),
            },
            "the chain a → b → a is a circle",
        ),
    ],
)
def test_impossible_parents_are_refused(tasks, message):
    with pytest.raises(ValueError, match=message):
        parents_first(tasks)
