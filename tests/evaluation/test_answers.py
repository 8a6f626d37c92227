"""Each loop's answer: where a probe may find it, and where it must not; agreement against counted pairs."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ouro_lab.data import TaskData
from ouro_lab.evaluation.answers import AnswerAgreement, AnswerProbes
from ouro_lab.evaluation.probes import Probes
from ouro_lab.evaluation.trajectory import trajectory
from ouro_lab.model import LoopedTransformer

Made = Callable[..., LoopedTransformer]
Data = Callable[..., TaskData]


class Fresh(nn.Module):
    """A backbone whose answer at every loop is drawn anew, so that nothing before a loop can tell it; one of 6."""

    loops = 3

    def __init__(self, same: bool) -> None:
        super().__init__()
        self.head_weight = nn.Parameter(torch.eye(6))
        self.same = same

    def loop_states(self, tokens: Tensor, documents: Tensor | None = None, loops: int | None = None):
        draw = torch.Generator().manual_seed(int(tokens.sum()))
        first = torch.randint(6, tokens.shape, generator=draw)
        for _ in range(loops or self.loops):
            answer = first if self.same else torch.randint(6, tokens.shape, generator=draw)
            yield SimpleNamespace(hidden=torch.eye(6)[answer], gate_logit=None)


def test_a_fresh_answer_is_at_the_loops_end_and_not_before_it(echo: Data) -> None:
    for same, before in ((False, 0.5), (True, 1.0)):
        found = {layer: AnswerProbes(layer, tokens=3000)(Fresh(same), echo(), "test") for layer in (0, 1)}
        assert found[0]["answer/auc"] == pytest.approx(before, abs=0.03)
        assert found[1]["answer/auc"] == pytest.approx(1.0, abs=1e-6)
        assert found[0]["answer/accuracy_loop3"] == pytest.approx(1 if same else 1 / 6, abs=0.05)
        assert found[0]["answer/auc"] == pytest.approx(sum(found[0][f"answer/auc_loop{t}"] for t in (2, 3)) / 2)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_states_and_answers_are_those_of_the_loops_that_are_meant(layer: int, echo: Data, backbone: Made) -> None:
    """Against `Probes`, which has every state of every layer for the answer of one loop."""
    model, data = backbone(6), echo()
    values = AnswerProbes(layer, tokens=3000)(model, data, "test")
    assert sorted(values) == sorted(AnswerProbes().metric_names(data, 3))
    for loop in (2, 3):
        at = (loop, layer) if layer else (loop - 1, 2)
        rows = {(row["loop"], row["layer"]): row for row in Probes(loop=loop, tokens=3000).table(model, data, "test")}
        for name in ("auc", "accuracy", "chance"):
            assert values[f"answer/{name}_loop{loop}"] == rows[at][name]


def test_agreement_is_of_the_loops_from_first_to_last(echo: Data, backbone: Made) -> None:
    model, data = backbone(6), echo()
    argmax = trajectory(model, data, "test", 5, rules=()).argmax
    same = {(i, j): float((argmax[i - 1] == argmax[j - 1]).double().mean()) for j in range(2, 6) for i in range(1, j)}
    for first in (1, 3):
        values = AnswerAgreement(first, 5)(model, data, "test")
        assert sorted(values) == sorted(AnswerAgreement(first, 5).metric_names(data, 3))
        assert all(values[f"agreement/loops_{i}_{j}"] == pytest.approx(share) for (i, j), share in same.items())
        steps = [same[i, i + 1] for i in range(first, 5)]
        assert values["agreement/consecutive"] == pytest.approx(sum(steps) / len(steps))
    drawn = AnswerAgreement(1, 5)(Fresh(False), data, "test")
    assert drawn["agreement/consecutive"] == pytest.approx(drawn["agreement/chance"], abs=0.02)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m, d: AnswerProbes(-1), r"^evaluation.layer = -1: must be a number ≥ 0$"),
        (lambda m, d: AnswerProbes(3)(m, d, "test"), r"^evaluation.layer = 3: must be from 0 to 2$"),
        (lambda m, d: AnswerAgreement(4, 4), r"^evaluation.first = 4: must be from 1 to 3, below evaluation.last$"),
        (lambda m, d: AnswerAgreement(1, 2)(m, d, "test"), r"^evaluation.last = 2: must be at least the backbone's 3"),
    ],
)
def test_what_cannot_be_asked_is_named(ask: Callable, message: str, echo: Data, backbone: Made) -> None:
    with pytest.raises(ValueError, match=message):
        ask(backbone(6), echo())


def test_one_loop_has_nothing_to_add(echo: Data, backbone: Made) -> None:
    with pytest.raises(ValueError, match=r"^backbone.loops = 1: must be at least 2"):
        AnswerProbes()(backbone(6, loops=1), echo(), "test")
