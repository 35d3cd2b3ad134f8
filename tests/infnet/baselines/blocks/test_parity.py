"""Our blocks against torch-rechub 0.9, with copied weights, in float64."""

import pytest
import torch
from torch import nn

from infnet.baselines.blocks.cross import CrossNetwork, LowRankCrossNetwork
from infnet.baselines.blocks.din import TargetAttention
from infnet.baselines.blocks.ple import ProgressiveLayeredExtraction

pytest.importorskip("torch_rechub", reason="pip install torch-rechub to compare with it")

from torch_rechub.basic import layers as peer_layers
from torch_rechub.models.multi_task.ple import CGC
from torch_rechub.models.ranking.din import ActivationUnit


def plain(module: nn.Module) -> nn.Module:
    """In float64, with the batch normalisation of its MLPs made an identity."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.eps = 0.0
    return module.double().eval()


def copy(ours: nn.Module, theirs: nn.Module) -> None:
    """Weights of all Linear layers, in order."""
    linears = [[m for m in x.modules() if isinstance(m, nn.Linear)] for x in (ours, theirs)]
    for one, other in zip(*linears, strict=True):
        one.load_state_dict(other.state_dict())


def test_the_cross_network_without_bias_is_theirs():
    """With a bias theirs is x_0 ⊙ W x + b + x, which is not the paper's."""
    theirs = plain(peer_layers.CrossNetV2(6, 3))
    ours = CrossNetwork(6, 3).double()
    for one, other in zip(ours.layers, theirs.w, strict=True):
        one.weight.data, one.bias.data = other.weight.data, torch.zeros(6, dtype=torch.float64)
    x = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_the_low_rank_cross_network_is_theirs():
    theirs = plain(peer_layers.CrossNetMix(6, 2, low_rank=3, num_experts=4))
    ours = LowRankCrossNetwork(6, 2, rank=3, num_experts=4).double()
    ours.v.data = torch.stack(list(theirs.v_list))
    ours.c.data = torch.stack([c.transpose(1, 2) for c in theirs.c_list])
    ours.u.data = torch.stack([u.transpose(1, 2) for u in theirs.u_list])
    ours.bias.data = torch.randn(2, 6, dtype=torch.float64)
    for own, bias in zip(ours.bias.data, theirs.bias, strict=True):
        bias.data = own[:, None]
    ours.gate.weight.data = torch.cat([gate.weight for gate in theirs.gating])
    x = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("softmax", [False, True])
def test_target_attention_is_theirs_on_full_histories(softmax):
    theirs = plain(ActivationUnit(4, dims=[7, 5], activation="relu", use_softmax=softmax))
    ours = TargetAttention(4, hidden=(7, 5), softmax=softmax).double()
    copy(ours, theirs)
    target = torch.randn(3, 4, dtype=torch.float64)
    events = torch.randn(3, 6, 4, dtype=torch.float64)
    valid = torch.ones(3, 6, dtype=torch.bool)
    torch.testing.assert_close(ours(target, events, valid), theirs(events, target))


def test_progressive_layered_extraction_is_theirs():
    settings = {"dims": [5, 3], "activation": "relu", "dropout": 0.0}
    theirs = [plain(CGC(level, 2, 2, 2, 1, 4, settings)) for level in (1, 2)]
    ours = ProgressiveLayeredExtraction(
        4, num_tasks=2, num_layers=2, num_specific=2, num_shared=1, hidden=(5, 3)
    ).double()
    for one, other in zip(ours.layers, theirs, strict=True):
        copy(one.experts[0], other.experts_specific[:2])
        copy(one.experts[1], other.experts_specific[2:])
        copy(one.experts[2], other.experts_shared)
        copy(one.gates, other.gates_specific)
    copy(ours.layers[0].shared_gate, theirs[0].gate_shared)
    x = torch.randn(6, 4, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs[1](theirs[0]([x] * 3)))
