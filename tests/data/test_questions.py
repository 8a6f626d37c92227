"""Questions against a plain scorer of log-likelihoods, folds, groups and the messages for what is not there."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ouro_lab.data import ByteTokenizer, Questions
from ouro_lab.data.choice_metrics import ChoiceMetrics, Choices
from ouro_lab.model import LoopedTransformer, ModelConfig
from ouro_lab.objectives import token_cross_entropy

BYTES = ByteTokenizer()
ROWS = [
    {"prompt": "2 + 2 = ", "options": ["4", "five"], "answer": 0, "group": "sums/easy"},
    {"options": [["The sky, red,", " is up"], ["The blue sky", " is up"]], "answer": 1, "group": "words"},
    {"prompt": "Name it:", "options": [" a", " bb", " ccc"], "answer": 2, "group": "words", "lengths": [1, 2, 3]},
    {"prompt": "", "options": ["x", "yz"], "answer": 1, "group": "sums/hard"},
    {"prompt": "left out", "options": ["x"], "group": "sum"},
]


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(tmp_path / "q.jsonl")


@pytest.fixture(scope="module")
def model() -> LoopedTransformer:
    model = LoopedTransformer(ModelConfig(257, 2, 3, 16, 2, init_std=0.4, attention="plain")).double()
    model.initialise(1)
    return model


def nats(model: LoopedTransformer, context: str, text: str, loop: int) -> float:
    """One option on its own, one token at a time; blanks at the context's end belong to the option."""
    kept = context.rstrip()
    before = BYTES.encode([kept])[0].tolist() or [BYTES.eos]
    total = 0.0
    for target in BYTES.encode([(context + text)[len(kept) :]])[0].tolist():
        with torch.no_grad():
            logits = model(torch.tensor([before]), loops=loop)[0, -1]
        total -= float(logits.log_softmax(-1)[target])
        before.append(target)
    return total


def measured(data: Questions, model: LoopedTransformer) -> dict[str, float]:
    """As LoopedModule updates the metric in a test pass."""
    metric = data.metrics(model.loops)
    for batch in data.test_dataloader():
        with torch.no_grad():
            losses = [
                token_cross_entropy(state.hidden, model.head_weight, batch["targets"])
                for state in model.loop_states(batch["tokens"])
            ]
        metric.update(batch, torch.stack(losses), torch.zeros(0))
    return {name: float(value) for name, value in metric.compute().items()}


def test_answers_are_the_likeliest_options_at_every_loop(path: str, model: LoopedTransformer) -> None:
    values = measured(Questions(path, BYTES, ("sums", "words"), batch_size=3), model)
    right: dict[str, list[list[bool]]] = {"sums": [], "words": []}
    loss = np.zeros(3)
    for row in ROWS[:4]:
        pairs = [(row["prompt"], option) if isinstance(option, str) else option for option in row["options"]]
        found = np.array([[nats(model, *pair, loop) for pair in pairs] for loop in (1, 2, 3)])  # [T, K]
        best = (found / np.array(row.get("lengths", [1] * len(pairs)))).argmin(1)
        right[row["group"].split("/")[0]].append(list(best == row["answer"]))
        loss += found[:, row["answer"]] / 4
    for group, answers in right.items():
        by_loop = np.mean(answers, axis=0)
        assert [values[f"accuracy_loop{t}/{group}"] for t in (1, 2, 3)] == pytest.approx(list(by_loop))
        assert values[f"gain/{group}"] == pytest.approx(by_loop[2] - by_loop[0])
    assert [values[f"loss_loop{t}"] for t in (1, 2, 3)] == pytest.approx(list(loss))
    assert values["accuracy"] == pytest.approx(np.mean([row[2] for rows in right.values() for row in rows]))
    assert {name.split("_loop")[0].split("/")[0] for name in values} == {"loss", "accuracy", "gain"}


def test_ties_go_to_the_first_option_and_questions_may_have_few() -> None:
    choices = Choices.of([[1, 1], [1, 1, 2]], [0, 2], [0, 0])
    metric = ChoiceMetrics(1, (), choices)
    nats_of = torch.tensor([2.0, 2.0, 5.0, 6.0, 8.0])  # 8 / 2 is least
    batch = {"targets": torch.zeros(5, 1, dtype=torch.long), "row": torch.arange(5)}
    metric.update(batch, nats_of.view(1, 5, 1), torch.zeros(0))
    assert float(metric.compute()["accuracy"]) == 1.0


def test_scored_is_where_the_right_option_begins_once_a_question(path: str) -> None:
    (batch,) = Questions(path, BYTES, ("sums", "words"), batch_size=16).test_dataloader()
    rows, places = batch["scored"].nonzero().unbind(1)
    assert len(rows) == 4
    starts = [batch["targets"][row, place].item() for row, place in zip(rows, places, strict=True)]
    assert starts == [ord(" "), ord(" "), ord(" "), ord("y")]
    assert (batch["targets"] != -100).sum() == sum(
        map(len, [" 4", " five", " is up", " is up", " a", " bb", " ccc"])
    ) + 3


def test_folds_part_the_questions_and_cost_is_what_is_computed(path: str) -> None:
    seen = []
    for fold in (0, 1):
        data = Questions(path, BYTES, ("sums", "words"), fold=fold, folds=2)
        tests, vals = (list(map(str, data._split(split).questions)) for split in ("test", "val"))
        assert not set(tests) & set(vals)
        assert len(tests) + len(vals) == 4
        seen += tests
        batches = list(data.evaluation_batches("test"))
        assert data.evaluation_tokens("test") == sum(batch["tokens"].numel() for batch in batches)
    assert len(set(seen)) == 4
    assert data.floors()["accuracy/words"]["value"] == pytest.approx(1 / 2)
    unknown = Questions(None, None, ("sums",), positions=77)
    assert (unknown.vocab_size, unknown.evaluation_tokens("test"), unknown.floors()) == (49_152, 77, {})


def test_a_prompt_alone_ends_the_document_and_long_texts_lose_their_beginning(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "how to bake bread?"}\n')
    (batch,) = Questions(str(tmp_path / "p.jsonl"), BYTES, length=6).test_dataloader()
    assert BYTES.decode(batch["tokens"][0].tolist()) == "bread?"
    assert batch["targets"][0].tolist() == [-100] * 5 + [BYTES.eos]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (None, r"^data.path = .*: no such file; must be JSONL: what it holds$"),
        ("{}", r"line 1: not a question \(KeyError: 'prompt'\)$"),
        ("[1]", r"line 1: not a question"),
        ('{"prompt": "a", "options": ["b"], "answer": 1}', r"line 1: answer = 1: must be from 0 to 0"),
        ('{"prompt": "a", "options": ["b"], "lengths": [0]}', r"line 1: lengths = \[0.0\]: must be 1 numbers > 0$"),
        ('{"prompt": "a", "group": "x"}', r"^data.path = .*: has no question of sums$"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(line: str | None, message: str, tmp_path: Path) -> None:
    if line is not None:
        (tmp_path / "q.jsonl").write_text(line + "\n")
    data = Questions(str(tmp_path / "q.jsonl"), BYTES, ("sums",), what="what it holds")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        data.prepare_data()
    assert "\n" not in str(caught.value)


def test_a_group_that_the_file_lacks_is_named(path: str) -> None:
    with pytest.raises(ValueError, match=r"^data.groups: .* has no question of maths; must be JSONL: questions$"):
        Questions(path, BYTES, ("words", "maths")).prepare_data()
    with pytest.raises(ValueError, match=r"^fold = 2: must be an integer from 0 to 1$"):
        Questions(path, BYTES, fold=2, folds=2)
