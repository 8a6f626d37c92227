"""What is written: by a slow greedy search; and judged: by counting, with models whose answers are known."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ouro_lab.data import ByteTokenizer, Questions
from ouro_lab.evaluation import written
from ouro_lab.evaluation.written import SCORES, Harmfulness, Solved, Written, judge_score, last_number, solved
from ouro_lab.interop import Trunk, export_trunk
from ouro_lab.model import LoopedTransformer, ModelConfig

BYTES = ByteTokenizer()


@pytest.fixture
def data(tmp_path: Path) -> Questions:
    rows = [{"prompt": f"{i} + {i} =", "options": [f" {2 * i}"], "group": "sums"} for i in range(3)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Questions(str(tmp_path / "sums.jsonl"), BYTES, ("sums",))


@pytest.fixture(scope="module")
def model() -> LoopedTransformer:
    model = LoopedTransformer(ModelConfig(257, 2, 3, 16, 2, init_std=0.4, attention="plain"))
    model.initialise(1)
    return model.eval()


def greedy(model: LoopedTransformer, text: str, count: int) -> str:
    ids = BYTES.encode([text])[0].tolist()
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        if ids[-1] == BYTES.eos:
            break
    return BYTES.decode(ids[len(text) :])


def test_texts_are_greedy_at_the_backbones_loops(data: Questions, model: LoopedTransformer) -> None:
    found = list(Solved(tokens=6).write(model, data, "test"))
    for i, one in enumerate(found):
        assert one == Written(f"{i} + {i} =", greedy(model, f"{i} + {i} =", 6), f" {2 * i}")


def test_samples_are_of_their_own_and_repeat(data: Questions, model: LoopedTransformer) -> None:
    ask = Solved(tokens=8, temperature=1.0, samples=3)
    first, again = ([x.answer for x in ask.write(model, data, "test")] for _ in range(2))
    assert first == again
    assert len(first) == 9 and len(set(first)) > 6
    assert ask.positions(data, 3) == 3 * (data.evaluation_tokens("test") + 3 * 8)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (r"so 12, that is \boxed{204} and not 7", 204),
        (r"first \boxed{1}, then \boxed{= 33}", 33),
        ("it is 5, or -6.", -6),
        ("no number", None),
    ],
)
def test_the_last_number_counts(text: str, number: int | None) -> None:
    assert last_number(text) == number


def test_an_answer_without_a_number_solves_nothing(data: Questions, model: LoopedTransformer, monkeypatch) -> None:
    assert solved(Written("", "it is 204", " 204"))
    assert not solved(Written("", "unknown", "unknown"))
    texts = ["4", "x 2", "none"]
    monkeypatch.setattr(written, "generate", lambda *given, **more: [given_text(texts.pop(0))])
    assert Solved(tokens=2)(model, data, "test") == {"solved/share": pytest.approx(1 / 3)}  # 0, 2 and 4 are right


def given_text(text: str) -> object:
    return type("Made", (), {"tokens": BYTES.encode([text])[0].tolist()})()


class Counts(nn.Module):
    """A judge that gives as many points as the text has exclamation marks, from 1 to 5."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(257, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        logits = torch.zeros(*tokens.shape, 257)
        points = min(5, max(1, int((tokens == ord("!")).sum())))
        logits[..., ord(str(points))] = 9.0
        return logits


def test_the_judges_likeliest_score_is_taken() -> None:
    judge = Trunk(Counts(), BYTES, None, "")
    assert [judge_score(judge, "!" * count) for count in range(1, 7)] == [*SCORES, 5]


def test_rates_are_means_over_answers(
    data: Questions, model: LoopedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(written, "_judge", lambda source: Trunk(Counts(), BYTES, None, ""))
    texts = ["!!!!!", "!", "!!!"]
    monkeypatch.setattr(written, "generate", lambda *given, **more: [given_text(texts.pop(0))])
    values = Harmfulness(judge="counts", template="{answer}")(model, data, "test")
    assert values == {"harm/score": 3.0, "harm/rate": pytest.approx(1 / 3)}


def test_a_judge_that_is_missing_or_has_no_tokenizer_is_one_line(
    data: Questions, model: LoopedTransformer, tmp_path: Path
) -> None:
    export_trunk(Trunk(model, None, None, ""), tmp_path / "mute")
    for judge, message in (
        (None, r"^evaluation.judge = None: must be a checkpoint"),
        (str(tmp_path / "mute"), "has no tokenizer"),
    ):
        with pytest.raises(ValueError, match=message):
            Harmfulness(judge=judge)(model, data, "test")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Solved(tokens=0), r"^evaluation.tokens = 0: must be an integer ≥ 1$"),
        (lambda: Solved(samples=0), r"^evaluation.samples = 0: must be"),
        (lambda: Solved(temperature=-1), r"^temperature = -1: must be"),
    ],
)
def test_bad_values_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
