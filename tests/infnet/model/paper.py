"""INFNet v1 as the paper writes it: one row at a time, plain loops, no padding, float64. The reference twin."""

import math

import torch

from infnet.model.flow import CrossFlow
from infnet.model.infnet import INFNet
from infnet.model.inputs import Inputs


def attention(queries, tokens, w_q, w_k, w_v):
    """CA(Q,K,V) for lists of vectors; w_* are [D, d_k]. No token: the zero vector."""
    results = []
    for q in queries:
        if not len(tokens):
            results.append(q.new_zeros(w_v.shape[1]))
            continue
        scores = [(q @ w_q) @ (x @ w_k) / math.sqrt(w_k.shape[1]) for x in tokens]
        largest = max(s.item() for s in scores)
        weights = [torch.exp(s - largest) for s in scores]
        total = sum(weights)
        results.append(sum(w / total * (x @ w_v) for w, x in zip(weights, tokens, strict=True)))
    return results


def multi_head(flow: CrossFlow, reader: int, queries, tokens):
    """One reader of a CrossFlow: heads one by one, side by side in the result."""
    heads = [
        attention(
            queries,
            tokens,
            flow.query[reader, :, head],
            flow.key[reader, :, head],
            flow.value[reader, :, head],
        )
        for head in range(flow.num_heads)
    ]
    return [torch.cat(parts) for parts in zip(*heads, strict=True)]


def gate(unit, tokens, proxies):
    """PGU(X, X̃)."""
    g = torch.sigmoid(unit.mlp(torch.cat(list(proxies))))
    return [x * g for x in tokens]


def sequence_proxies(weight, tokens):
    """[Σ_t φ_j(s_t)]_j for one behaviour type."""
    return [
        sum((s @ projection for s in tokens), start=projection.new_zeros(projection.shape[1]))
        for projection in weight
    ]


def block(module, C, S, T, c, s, t):
    """One block; upper case tokens, lower case proxies, all lists of vectors."""
    flow, homogeneous = module.heterogeneous, module.homogeneous
    tokens = {"categorical": C, "sequence": S, "task": T}
    state = {"categorical": c, "sequence": s, "task_proxies": t, "task": T}
    before = dict(state)
    gathered = {}
    for kind, readers in flow.readers.items():
        for place, reader in enumerate(readers):
            result = multi_head(flow.flows[f"read_{kind}"], place, before[reader], tokens[kind])
            gathered.setdefault(reader, []).append(result)
    for reader, results in gathered.items():
        new = [sum(parts) for parts in zip(*results, strict=True)]
        if flow.residual:
            new = [x + y for x, y in zip(before[reader], new, strict=True)]
        if flow.norms:
            new = [flow.norms[f"norm_{reader}"](x) for x in new]
        state[reader] = new
    source = state if module.pgu_source == "post" else before
    tokens["task"] = state["task"]
    for kind in homogeneous.kinds:
        proxies = source["task_proxies" if kind == "task" else kind]
        unit = homogeneous.gates[f"gate_{kind}"]
        new = gate(unit, tokens[kind], proxies)
        if unit.residual:
            new = [x + y for x, y in zip(tokens[kind], new, strict=True)]
        if homogeneous.norms:
            new = [homogeneous.norms[f"norm_{kind}"](x) for x in new]
        tokens[kind] = new
    after = (state["categorical"], state["sequence"], state["task_proxies"])
    return (tokens["categorical"], tokens["sequence"], tokens["task"], *after)


def infnet(network: INFNet, inputs: Inputs) -> list[dict[str, torch.Tensor]]:
    """Logits of each row. Padding is cut off before anything is computed."""
    tokens, _ = network.initial(inputs)
    results = []
    for row in range(len(inputs.dense)):
        C = list(tokens.categorical.gated[row])
        T = list(network.task_tokens.task)
        histories, at = [], 0
        for slot in network.schema.sequences:
            valid = inputs.valid[slot.name][row]
            events = tokens.sequence.gated[row, at : at + len(valid)]
            histories.append([e for e, v in zip(events, valid, strict=True) if v])
            at += len(valid)
        S = [event for history in histories for event in history]
        c = list(network.categorical_proxies.mlp(torch.cat(C)).view(-1, C[0].shape[0]))
        s = [p for h in histories for p in sequence_proxies(network.sequence_proxies.weight, h)]
        t = list(network.task_tokens.shared)
        if network.pooled_task_proxies is not None:
            t += list(network.pooled_task_proxies.mlp(torch.cat(T)).view(-1, C[0].shape[0]))
        for module in network.blocks:
            C, S, T, c, s, t = block(module, C, S, T, c, s, t)
        logits = {}
        for name, tower, x in zip(network.heads.tasks, network.heads.towers, T, strict=True):
            logits[name] = tower(x)
        results.append(logits)
    return results
