"""Forced decoding equals the parallel pass where nothing is shared, and the oracle of the policies elsewhere."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from ouro_lab.data import TaskData, TextData
from ouro_lab.evaluation.decoding import ForcedDecoding
from ouro_lab.evaluation.passes import batches
from ouro_lab.inference.exits import ArgmaxStable, QExit
from ouro_lab.inference.oracle import Oracle
from ouro_lab.model import LoopedTransformer

PROMPT, TOKENS = 5, 6
MakeBackbone = Callable[..., LoopedTransformer]


def chosen(data: TaskData | TextData) -> list[dict[str, torch.Tensor]]:
    """Rows of the test split with one document and a target at every forced position, found one by one."""
    end, found = PROMPT + TOKENS, []
    for batch in batches(data, "test", torch.device("cpu")):
        for i in range(len(batch["tokens"])):
            row = {name: values[i, :end] for name, values in batch.items() if values.dim() == 2}
            one = "documents" not in row or row["documents"].unique().numel() == 1
            if one and (row["targets"][PROMPT:] >= 0).all():
                found.append(row)
    return found


def test_without_sharing_it_is_the_parallel_pass(backbone: MakeBackbone, text: TextData) -> None:
    model = backbone(text.vocab_size)
    found = ForcedDecoding(prompt=PROMPT, tokens=TOKENS)(model, text, "test")
    rows = chosen(text)
    losses = []
    for row in rows:
        logits = model(row["tokens"].unsqueeze(0))[0, PROMPT:].detach()
        losses.append(F.cross_entropy(logits, row["targets"][PROMPT:], reduction="none"))
    loss = torch.cat(losses)
    size = torch.cat([row["bytes"][PROMPT:] for row in rows]).sum()
    assert len(rows) > 3
    assert found["decode/loss"] == pytest.approx(float(loss.mean()), rel=1e-9)
    assert found["decode/bits_per_byte"] == pytest.approx(float(loss.sum() / torch.tensor(2.0).log() / size), rel=1e-6)
    assert found["decode/mean_loops"] == model.loops
    assert set(found) == set(ForcedDecoding().metric_names(text, model.loops))


@pytest.mark.parametrize("policy", ["last_available", "last", "first", "mean"])
@pytest.mark.parametrize("rule", [None, ArgmaxStable(), QExit(0.6)], ids=["all", "stable", "gate"])
def test_policies_and_rules_are_the_oracles(backbone: MakeBackbone, p_hop: TaskData, policy: str, rule) -> None:
    model = backbone(p_hop.vocab_size)
    found = ForcedDecoding("full", policy, rule, PROMPT, TOKENS, rows=3)(model, p_hop, "test")
    losses, loops = [], []
    for number, row in enumerate(chosen(p_hop)[:3]):
        oracle = Oracle(model, "full", policy)
        for place, token in enumerate(row["tokens"].tolist()):
            step = oracle.step(token, place >= PROMPT, rule if place >= PROMPT else None, seed=number)
            if place >= PROMPT:
                losses.append(F.cross_entropy(step.logits, row["targets"][place]))
                loops.append(step.loops)
    assert found["decode/loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-9)
    assert found["decode/mean_loops"] == pytest.approx(sum(loops) / len(loops))
    if rule is not None:
        assert 1 < found["decode/mean_loops"] < model.loops


def test_sharing_while_reading_is_another_thing(backbone: MakeBackbone, p_hop: TaskData) -> None:
    model = backbone(p_hop.vocab_size)
    values = [
        ForcedDecoding(prefill, "last", None, PROMPT, TOKENS)(model, p_hop, "test") for prefill in ("full", "last")
    ]
    assert values[0]["decode/loss"] != pytest.approx(values[1]["decode/loss"], rel=1e-6)


def test_a_shared_cache_takes_a_loops_share(backbone: MakeBackbone, p_hop: TaskData) -> None:
    model = backbone(p_hop.vocab_size)
    full, last = (
        ForcedDecoding("full", policy, None, PROMPT, TOKENS)(model, p_hop, "test")["decode/cache_bytes"]
        for policy in ("full", "last")
    )
    assert full == model.loops * last
    config = model.config
    assert last == 2 * config.layers * config.kv_heads * config.head_dim * 8  # float64


def test_bad_input_is_one_line(backbone: MakeBackbone, p_hop: TaskData) -> None:
    model = backbone(p_hop.vocab_size)
    with pytest.raises(ValueError, match=r"evaluation\.tokens = 0: must be an integer ≥ 1"):
        ForcedDecoding(tokens=0)
    with pytest.raises(ValueError, match=r"evaluation\.prompt \+ tokens = 256: no row of test"):
        ForcedDecoding()(model, p_hop, "test")
    with pytest.raises(ValueError, match="decode = full"):
        ForcedDecoding(rule=QExit(0.5), prompt=PROMPT, tokens=TOKENS)(model, p_hop, "test")
    with pytest.raises(ValueError, match="decode = 'none': must be one of full"):
        ForcedDecoding(decode="none", prompt=PROMPT, tokens=TOKENS)(model, p_hop, "test")
