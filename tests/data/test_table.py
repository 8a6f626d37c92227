"""A file of one's own: read back as text, split without leaks, refused in one line where it cannot be used."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from ouro_lab.data.tasks import Table

ROWS = [
    {"prompt": f"{a} plus {b}", "answer": str(a + b), "difficulty": str(1 + (a > 9))}
    for a in range(20)
    for b in range(10)
]


def csv_file(path: Path, rows: list[dict]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def jsonl_file(path: Path, rows: list[dict]) -> str:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def own(tmp_path: Path) -> str:
    return csv_file(tmp_path / "own.csv", ROWS)


def read(task: Table, arrays: dict) -> list[tuple[str, str]]:
    """Prompts from the tokens, answers from the scored targets; each answer ends in an end."""
    found = []
    for tokens, targets, scored in zip(*(arrays[key] for key in ("tokens", "targets", "scored")), strict=True):
        marker = int((tokens == task.ans).argmax())
        answer = targets[scored]
        assert answer[-1] == task.end
        assert np.flatnonzero(scored).tolist() == list(range(marker, marker + len(answer)))
        found.append((task.decode(tokens[:marker]), task.decode(answer)))
    return found


@pytest.mark.parametrize("vocabulary", ["bytes", "characters", "words"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_rows_are_the_files(tmp_path: Path, vocabulary: str, kind: str) -> None:
    odd = [{"prompt": 'quoted, "so"\nand é', "answer": "naïve → yes", "difficulty": "2"}]
    write = csv_file if kind == "csv" else jsonl_file
    task = Table(write(tmp_path / f"own.{kind}", ROWS + odd), vocabulary=vocabulary)
    told = [text for split in ("train", "val", "test") for text in read(task, task._arrays(task.rows[split], "answer"))]
    wanted = [(row["prompt"], row["answer"]) for row in ROWS + odd]
    if vocabulary == "words":
        wanted = [(" ".join(prompt.split()), answer) for prompt, answer in wanted]
    assert sorted(told) == sorted(wanted)
    assert task.vocab_size == {"bytes": 258}.get(vocabulary, len(task.symbols) + 2)
    assert task.tokens.max() == task.end == task.vocab_size - 1


def test_numbers_of_a_jsonl_file_are_text(tmp_path: Path) -> None:
    rows = [{"prompt": i, "answer": i / 2, "difficulty": i % 3} for i in range(60)]
    task = Table(jsonl_file(tmp_path / "own.jsonl", rows))
    assert ("7", "3.5") in read(task, task._arrays(np.arange(60), "answer"))
    assert task.groups[:3] == ("difficulty_0", "difficulty_1", "difficulty_2")


def test_a_byte_order_mark_of_a_spreadsheet_is_no_part_of_the_header(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_bytes(b"\xef\xbb\xbfprompt,answer\r\n" + b"".join(f"{i},{i}\r\n".encode() for i in range(50)))
    assert Table(str(path)).groups == ("all", "seen_all")


def test_prompts_are_in_one_split_and_keep_it_in_a_larger_file(tmp_path: Path, own: str) -> None:
    task = Table(own)
    parts = {split: {task.prompts[row] for row in rows} for split, rows in task.rows.items()}
    assert sum(map(len, parts.values())) == len(ROWS)
    assert not (parts["train"] & parts["val"] or parts["train"] & parts["test"] or parts["val"] & parts["test"])
    assert 0.04 < len(parts["val"]) / 200 < 0.17
    assert 0.04 < len(parts["test"]) / 200 < 0.17
    more = [{"prompt": f"new {i}", "answer": "x", "difficulty": "1"} for i in range(90)] + ROWS + ROWS
    larger = Table(csv_file(tmp_path / "larger.csv", more))
    for split, prompts in parts.items():
        assert prompts == {larger.prompts[row] for row in larger.rows[split]} & {row["prompt"] for row in ROWS}


def test_a_column_may_say_the_split(tmp_path: Path) -> None:
    names = ["train", "train", "val", "test"]
    rows = [{"q": f"{i}", "a": f"{i}", "level": "hard/one", "part": names[i % 4]} for i in range(40)]
    task = Table(csv_file(tmp_path / "own.csv", rows), "q", "a", "level", "part")
    assert {split: len(part) for split, part in task.rows.items()} == {"train": 20, "val": 10, "test": 10}
    assert all(rows[row]["part"] == split for split, part in task.rows.items() for row in part)
    assert task.groups == ("difficulty_hard_one", "seen_difficulty_hard_one")


def test_training_reads_every_row_once_before_any_again(own: str) -> None:
    task = Table(own)
    n = len(task.rows["train"])
    told = read(task, task.sample(0, np.arange(2 * n)))
    assert len(set(told[:n])) == len(set(told[n:])) == n
    assert told[:n] != told[n:]
    assert told[:n] != read(task, task.sample(1, np.arange(n)))
    part = task.sample(0, np.array([n + 3, 5]))
    assert read(task, part) == [told[n + 3], told[5]]


def test_evaluation_holds_rows_of_each_difficulty_and_training_rows_beside(own: str) -> None:
    task = Table(own)
    assert task.groups == ("difficulty_1", "difficulty_2", "seen_difficulty_1", "seen_difficulty_2")
    arrays = task.evaluation("val", 5)
    assert np.bincount(arrays["group"]).tolist() == [5] * 4
    train = {task.prompts[row] for row in task.rows["train"]}
    for (prompt, _), group in zip(read(task, arrays), arrays["group"].tolist(), strict=True):
        assert (prompt in train) == (group > 1)
        assert (int(prompt.split()[0]) > 9) == (group % 2 == 1)
    assert len(set(read(task, task.evaluation("test", 1000)))) == len(task.rows["test"]) + len(task.rows["train"])


def test_the_loss_is_on_the_answer_or_on_all_tokens(own: str) -> None:
    some, everything = Table(own).sample(0, np.arange(30)), Table(own, loss="all").sample(0, np.arange(30))
    assert ((some["targets"] != -100) == some["scored"]).all()
    for tokens, targets, scored in zip(*(everything[k] for k in ("tokens", "targets", "scored")), strict=True):
        last = np.flatnonzero(scored)[-1]
        assert (targets[:last] == tokens[1 : last + 1]).all()
        assert (targets[last + 1 :] == -100).all()


def test_floors_find_a_shortcut(tmp_path: Path) -> None:
    """The answer is the last word's in nine of ten rows: a table of last words scores about that, a constant half."""
    rows = [
        {"prompt": f"{i} is {'odd' if i % 2 else 'even'}", "answer": "xy"[(i % 2) ^ (i % 10 == 0)], "difficulty": "1"}
        for i in range(3000)
    ]
    floors = Table(csv_file(tmp_path / "own.csv", rows)).floors()
    assert set(floors) == {"accuracy", "accuracy/difficulty_1"}
    assert floors["accuracy"]["value"] == pytest.approx(0.9, abs=0.04)
    assert "the last word" in str(floors["accuracy"]["what"])


def table(tmp_path: Path, text: str, name: str = "own.csv") -> str:
    path = tmp_path / name
    path.write_bytes(text.encode("latin-1"))
    return str(path)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, r"own\.csv: holds no rows; must have at least one of each split"),
        ("prompt,answer\n", {}, r"own\.csv: holds no rows"),
        ("prompt,reply\na,b\n", {}, r"answer = 'answer': no such column in .*; must be one of prompt, reply"),
        ("prompt,answer\na,b\n", {"difficulty": "level"}, r"difficulty = 'level': no such column in .*prompt, answer"),
        ("prompt,answer\na,b\nc,\n", {}, r"own\.csv: row 2: column answer is empty; must hold a value"),
        ("prompt,answer\na,b,c\n", {}, r"row 1 has more cells than the header"),
        ("prompt,answer\na,b\n", {}, r"held_out = 0\.2: none of the 1 rows of .* is (val|test|train); must be one"),
        ("prompt,answer,split\na,b,dev\n", {}, r"column split of .* = 'dev': must be one of train, val, test"),
        ("prompt,answer,split\na,b,train\n", {}, r"column split: none of the 1 rows of .* is val; must be one"),
        ("prompt,answer,split\na,b,train\na,b,test\n", {}, r"prompt 'a' is in train and in test; must be in one split"),
        ("prompt,answer\n\xe9,b\n", {}, r"own\.csv: cannot be read as UTF-8 text"),
        ("prompt,answer\na,b\n", {"vocabulary": "bpe"}, r"vocabulary = 'bpe': must be one of bytes, characters, words"),
        ("prompt,answer\na,b\n", {"held_out": 1.5}, r"held_out = 1\.5: must be a number above 0 and below 1"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Table(table(tmp_path, text), **options)
    assert "\n" not in str(error.value)


def test_too_many_or_clashing_difficulties_are_named(tmp_path: Path) -> None:
    many = [row | {"difficulty": str(i)} for i, row in enumerate(ROWS)]
    with pytest.raises(ValueError, match=r"difficulty: 200 different values in .*; must be ≤ 100"):
        Table(csv_file(tmp_path / "many.csv", many))
    clash = [row | {"difficulty": "a/b" if i % 2 else "a b"} for i, row in enumerate(ROWS)]
    with pytest.raises(ValueError, match=r"two values in .* are named difficulty_a_b"):
        Table(csv_file(tmp_path / "clash.csv", clash))


@pytest.mark.parametrize(("text", "message"), [("{", "line 1 is not JSON"), ("[1]", "line 1 is not an object")])
def test_a_line_that_is_no_object_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Table(table(tmp_path, text, "own.jsonl"))


def test_a_path_that_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv: no such file; must be a \.csv or \.jsonl file"):
        Table(str(tmp_path / "nothing.csv"))
    for path in (None, "own.xlsx"):
        with pytest.raises(ValueError, match=f"path = {path!r}: must be a .csv or .jsonl file"):
            Table(path)
