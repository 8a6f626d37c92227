"""The one pass against a slow one: sequence by sequence, full logits, numpy; and rules offline against rules online."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from ouro_lab.data import TaskData, TextData
from ouro_lab.evaluation import trajectory as module
from ouro_lab.evaluation.exits import outcome
from ouro_lab.evaluation.trajectory import RULES, Trajectory, trajectory
from ouro_lab.inference.exits import (
    ArgmaxStable,
    Entropy,
    ExitRule,
    HiddenDifference,
    LoopKL,
    LoopView,
    Margin,
    QExit,
    RandomExit,
    StaticDepth,
    ThresholdRule,
)
from ouro_lab.model import LoopedTransformer
from ouro_lab.objectives import token_cross_entropy

Made = Callable[..., LoopedTransformer]


def slow_tokens(model: LoopedTransformer, data: TaskData | TextData, split: str, loops: int) -> list[dict]:
    """Per scored token: hidden [R, d] and gate [R] of a pass over its sequence alone, and what the batch says of it."""
    found, number = [], 0
    for batch in {"val": data.val_dataloader, "test": data.test_dataloader}[split]():
        for i in range(len(batch["tokens"])):
            one = {key: value[i : i + 1] for key, value in batch.items()}
            with torch.no_grad():
                states = list(model.loop_states(one["tokens"], one.get("documents"), loops))
            undefined = "undefined" in data.groups and int(one["group"][0]) == data.groups.index("undefined")
            for place in range(data.length):
                scored = "scored" not in one or bool(one["scored"][0, place])
                if int(one["targets"][0, place]) != -100 and scored and not undefined:
                    hidden = np.stack([state.hidden[0, place].numpy() for state in states])
                    gate = np.array([float(state.gate_logit[0, place]) for state in states])
                    facts = {"sequence": number, "row": number * data.length + place, "hidden": hidden, "gate": gate}
                    found.append(facts | {"target": int(one["targets"][0, place])})
            number += 1
    return found


def slow_statistics(token: dict, head: np.ndarray) -> dict[str, np.ndarray]:
    logits = token["hidden"] @ head.T
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    norm = np.linalg.norm(np.diff(token["hidden"], axis=0), axis=1)
    kl = (p[1:] * np.log(p[1:] / p[:-1])).sum(1)
    best, ordered = p.argmax(1), np.sort(p, axis=1)
    late = lambda first, rest: np.concatenate([[first], rest])  # noqa: E731
    hazard = 1 / (1 + np.exp(-token["gate"]))
    return {
        "loss": -np.log(p[:, token["target"]]),
        "argmax": best,
        QExit(0.5).family: 1 - np.cumprod(1 - hazard),
        HiddenDifference(0.5).family: late(np.inf, norm),
        HiddenDifference(0.5, relative=True).family: late(np.inf, norm / np.linalg.norm(token["hidden"][1:], axis=1)),
        LoopKL(0.5).family: late(np.inf, kl),
        "ArgmaxStable()": late(0.0, best[1:] == best[:-1]),
        Margin(0.5).family: ordered[:, -1] - ordered[:, -2],
        Entropy(0.5).family: -(p * np.log(p)).sum(1),
        StaticDepth(1).family: np.arange(1, len(p) + 1),
    }


@pytest.mark.parametrize("kind", ["p_hop", "text", "addition"])
def test_every_number_is_that_of_a_slow_pass(
    kind: str, request: pytest.FixtureRequest, backbone: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With twice as many loops as trained, batches that do not divide the split, and chunks of five rows."""
    data = request.getfixturevalue(kind)
    model = backbone(data.vocab_size)
    monkeypatch.setattr(module, "chunk_rows", lambda _: 5)
    found = trajectory(model, data, "test", loops=6)
    tokens = slow_tokens(model, data, "test", 6)
    assert (found.loops, found.trained, len(found.target)) == (6, 3, len(tokens))
    for name in ("target", "sequence", "row"):
        assert getattr(found, name).tolist() == [token[name] for token in tokens]
    np.testing.assert_allclose(found.gate_logit, np.stack([t["gate"] for t in tokens], 1), rtol=1e-9, atol=1e-12)
    head = model.head_weight.detach().numpy()
    slow = [slow_statistics(token, head) for token in tokens]
    for name in slow[0]:
        expected = np.stack([row[name] for row in slow], 1)
        got = found.statistics[name] if name in found.statistics else getattr(found, name)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9, err_msg=name)
    assert (found.right == (found.argmax == found.target)).all()
    assert model.training


def online(model: LoopedTransformer, data: TaskData | TextData, rule: ExitRule) -> list[int]:
    """As generation decides: after each loop the rows still running are shown to `exits`, and leave."""
    left, head = [], model.head_weight.detach()
    for token in slow_tokens(model, data, "test", model.loops):
        hidden, gate = torch.tensor(token["hidden"]), torch.tensor(token["gate"])
        for loop in range(1, model.loops + 1):
            here = hidden[loop - 1 : loop]
            before = torch.zeros_like(here) if loop == 1 else hidden[loop - 2 : loop - 1]
            survival = torch.nn.functional.logsigmoid(-gate[:loop]).sum().view(1)
            made = (lambda x=here: x @ head.T), (lambda x=before: x @ head.T)
            row, gates = torch.tensor([token["row"]]), gate[:loop].unsqueeze(1)
            view = LoopView(torch.tensor([loop]), here, before, survival, *made, row, gates)
            if loop == model.loops or bool(rule.exits(view)):
                left.append(loop)
                break
    return left


def test_rules_exit_offline_where_they_do_online(text: TextData, backbone: Made) -> None:
    """At thresholds in the middle of what the tokens have, so that all depths occur."""
    text.prepare_data()
    model = backbone(text.vocab_size)
    strict = QExit(0.55, strict_reference=True)
    found = trajectory(model, text, "test", rules=(*RULES, strict))

    def in_the_middle(rule: ThresholdRule) -> ThresholdRule:
        values = found.statistic(rule)[:2].flatten()
        return rule.at(float(values[values.isfinite()].quantile(0.4)) + 1e-9)  # no token's own value: sums differ

    swept = [in_the_middle(rule) for rule in RULES if rule.sweeps and not isinstance(rule, StaticDepth | RandomExit)]
    depths = set()
    for rule in [*swept, strict, StaticDepth(2), ArgmaxStable(), RandomExit(mean=1.7)]:
        exits = found.exit_loops(rule).tolist()
        assert exits == online(model, text, rule), rule
        depths |= set(exits)
    assert depths == {1, 2, 3}


@pytest.mark.parametrize("kind", ["p_hop", "text", "addition"])
def test_static_outcomes_are_the_datas_own_metrics(kind: str, request: pytest.FixtureRequest, backbone: Made) -> None:
    """Accuracy of whole answers and bits per byte as the datamodule counts them."""
    data = request.getfixturevalue(kind)
    data.prepare_data()
    model = backbone(data.vocab_size)
    metrics = data.metrics(3)
    with torch.no_grad():
        for batch in data.test_dataloader():
            states = list(model.loop_states(batch["tokens"], batch.get("documents")))
            losses = torch.stack([token_cross_entropy(s.hidden, model.head_weight, batch["targets"]) for s in states])
            best = torch.stack([(s.hidden @ model.head_weight.T).argmax(-1) for s in states])
            metrics.update(batch, losses, best == batch["targets"])
    expected = {name: float(value) for name, value in metrics.compute().items()}
    found = trajectory(model, data, "test", rules=())
    own = outcome(found, torch.full_like(found.target, 3))
    assert own["accuracy"] == pytest.approx(expected["accuracy"])
    if kind == "text":
        assert own["bits_per_byte"] == pytest.approx(expected["bits_per_byte"])
        assert own["loss"] == pytest.approx(expected["loss"])


def test_a_sequence_exits_where_its_last_scored_token_does(text: TextData, backbone: Made) -> None:
    text.prepare_data()
    found = trajectory(backbone(text.vocab_size), text, "test")
    rule = Entropy(float(found.statistic(Entropy(1.0)).median()))
    each, together = found.exit_loops(rule), found.exit_loops(rule, per="sequence")
    for number in found.sequence.unique():
        inside = found.sequence == number
        assert set(together[inside].tolist()) == {int(each[inside][-1])}
    assert (each != together).any()


def test_a_rule_of_ones_own_is_measured_too(p_hop: TaskData, backbone: Made) -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Norm(ThresholdRule):
        least: float
        knob = "least"

        def statistic(self, view: LoopView) -> torch.Tensor:
            return view.hidden.norm(dim=-1)

    found = trajectory(backbone(p_hop.vocab_size), p_hop, "val", rules=(Norm(0.0),))
    assert found.exit_loops(Norm(0.0)).unique().tolist() == [1]
    assert found.exit_loops(Norm(1e9)).unique().tolist() == [3]


def test_bad_input_is_named(p_hop: TaskData, backbone: Made) -> None:
    model, gateless = backbone(p_hop.vocab_size), backbone(p_hop.vocab_size, gate=False)
    with pytest.raises(ValueError, match=r"^loops = 2: must be at least the backbone's 3$"):
        trajectory(model, p_hop, "val", loops=2)
    with pytest.raises(ValueError, match=r"^split = 'train': must be one of val, test$"):
        trajectory(model, p_hop, "train")
    with pytest.raises(ValueError, match=r"^rule = QExit\(.*\): needs an exit gate"):
        trajectory(gateless, p_hop, "val", rules=(QExit(0.5),))
    found: Trajectory = trajectory(gateless, p_hop, "val")
    assert found.gate_logit is None
    with pytest.raises(ValueError, match=r"^rule = QExit\(.*\): not in this trajectory; it has StaticDepth"):
        found.exit_loops(QExit(0.5))
