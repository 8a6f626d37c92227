"""A CSV or JSONL file of one's own as a task: a prompt, an answer, and perhaps a difficulty and a split per row."""

import csv
import hashlib
import io
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np

from ouro_lab.data.random import Ints, permutation
from ouro_lab.data.tasks.protocol import SEEN, TEST, TRAIN, VAL, Arrays, Floors, check_choice, check_share
from ouro_lab.data.tasks.rows import LOSSES, predict
from ouro_lab.data.tasks.shortcuts import majority_score

BYTES, CHARACTERS, WORDS = VOCABULARIES = ("bytes", "characters", "words")
_MOST_GROUPS = 100
Record = dict[str, str]


class Table:
    """`prompt <ans> answer <end>`, one row of the file each; an answer is right as a whole, with its end.

    path: a UTF-8 file, .csv with a header line or .jsonl with an object per line. prompt, answer, difficulty, split:
    names of its columns; those of difficulty and split are used if the file has them. Blanks around a cell go.
    The values of `split` are train, val and test. Without it a hash of the prompt decides: `held_out` of all prompts,
    half of them val and half test, so that repeated prompts stay together and rows added later move none. vocabulary:
    bytes, or the characters or the words (between blanks) that the file has. loss: of training, on the answer and its
    end, or on all tokens; evaluation always takes the answer's alone.

    Training reads every row once, in an order of its own, before any row again. Groups: `difficulty_x`, or `all`;
    `seen_…` are training rows, only reported. Vocabulary: that of the file, then <ans> and <end>, which fills a row.
    """

    def __init__(
        self,
        path: str | None,
        prompt: str = "prompt",
        answer: str = "answer",
        difficulty: str = "difficulty",
        split: str = "split",
        vocabulary: str = BYTES,
        held_out: float = 0.2,
        loss: str = "answer",
    ) -> None:
        check_choice("vocabulary", vocabulary, VOCABULARIES)
        check_share("held_out", held_out)
        check_choice("loss", loss, LOSSES)
        self.path, self.loss, self.vocabulary = path, loss, vocabulary
        self.records = _read(path)
        for field, column in {"prompt": prompt, "answer": answer, "difficulty": difficulty, "split": split}.items():
            if column not in self.records[0] and (field in ("prompt", "answer") or column != field):
                columns = ", ".join(name for name in self.records[0])
                raise ValueError(f"{field} = {column!r}: no such column in {path}; must be one of {columns}")
        self.prompts, self.answers = (self._column(column) for column in (prompt, answer))
        given = self._column(split) if split in self.records[0] else None
        self.rows = self._by_column(given, split) if given else self._by_hash(held_out)
        self._encode()
        self._set_groups(self._column(difficulty) if difficulty in self.records[0] else None)
        self._orders: dict[tuple[int, str, int], Ints] = {}

    def sample(self, seed: int, indices: Ints, split: str = TRAIN) -> Arrays:
        """Sample i is row i mod n of an order that is new for each of the ⌊i / n⌋ passes."""
        rows = self.rows[split]
        passes, places = np.divmod(indices, len(rows))
        chosen = np.empty(len(indices), np.int64)
        for number in np.unique(passes):
            here = passes == number
            chosen[here] = rows[self._order(seed, split, int(number))[places[here]]]
        return self._arrays(chosen, self.loss)

    def evaluation(self, split: str, size: int) -> Arrays:
        """Of each group `size` different rows, or all where it has fewer; training rows beside them."""
        parts = []
        for name in (split, TRAIN):
            rows = self.rows[name][permutation(0, f"table/fixed/{name}", len(self.rows[name]))]
            kept = [rows[self.kind[rows] == kind][:size] for kind in range(len(self.kinds))]
            arrays = self._arrays(np.concatenate(kept), "answer")
            seen = len(self.kinds) if name == TRAIN and split != TRAIN else 0
            parts.append(arrays | {"group": arrays["group"] + seen})
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def floors(self) -> Floors:
        """Accuracy on test rows of the most common answer of training rows, given a little of the prompt.

        Which field that is, is chosen on val rows.
        """
        fields = {name: np.unique(values, return_inverse=True)[1] for name, values in self._fields().items()}
        answers = np.unique(self.answers, return_inverse=True)[1]
        train, val, test = (self.rows[name] for name in (TRAIN, VAL, TEST))
        floors: Floors = {}
        for kind, group in enumerate([None, *self.kinds]):
            chosen, measured = (rows if group is None else rows[self.kind[rows] == kind - 1] for rows in (val, test))
            if len(measured):
                scored = {n: majority_score(v, answers, train, chosen) for n, v in fields.items()}
                best = max(scored, key=lambda name: scored[name])
                value = majority_score(fields[best], answers, train, measured)
                name = "accuracy" if group is None else f"accuracy/{group}"
                floors[name] = {"value": value, "what": f"majority answer of training rows given {best}"}
        return floors

    def decode(self, ids: Ints) -> str:
        """Text of token ids, markers left out."""
        ids = ids[ids < self.ans]
        if self.vocabulary == BYTES:
            return bytes(ids.tolist()).decode("utf-8", errors="replace")
        return (" " if self.vocabulary == WORDS else "").join(self.symbols[i] for i in ids)

    def _fields(self) -> dict[str, list[str]]:
        words = [prompt.split() for prompt in self.prompts]
        return {
            "nothing else": ["" for _ in words],
            "the difficulty": [self.kinds[kind] for kind in self.kind],
            "the first word": [row[0] for row in words],
            "the last word": [row[-1] for row in words],
            "the last character": [row[-1][-1] for row in words],
            "the number of characters": [str(len(prompt)) for prompt in self.prompts],
        }

    def _order(self, seed: int, split: str, number: int) -> Ints:
        key = (seed, split, number)
        if key not in self._orders:
            if len(self._orders) > 3:
                self._orders.clear()
            self._orders[key] = permutation(seed, f"table/{split}/{number}", len(self.rows[split]))
        return self._orders[key]

    def _column(self, name: str) -> list[str]:
        """Raises: ValueError naming the first row whose cell is empty."""
        values = [record.get(name, "").strip() for record in self.records]
        if "" in values:
            row = values.index("") + 1
            raise ValueError(f"path = {self.path}: row {row}: column {name} is empty; must hold a value")
        return values

    def _by_column(self, values: list[str], column: str) -> dict[str, Ints]:
        """Raises: ValueError for other values, an empty split, or a prompt that is in two splits."""
        rows = {}
        for name, value in dict.fromkeys(zip(self.prompts, values, strict=True)):
            check_choice(f"column {column} of {self.path}", value, (TRAIN, VAL, TEST))
            if rows.setdefault(name, value) != value:
                raise ValueError(
                    f"column {column} of {self.path}: prompt {name!r} is in {rows[name]} and in {value};"
                    " must be in one split"
                )
        parts = {name: np.flatnonzero([value == name for value in values]) for name in (TRAIN, VAL, TEST)}
        return self._filled(parts, f"column {column}")

    def _by_hash(self, held_out: float) -> dict[str, Ints]:
        words = [hashlib.blake2b(prompt.encode(), digest_size=8).digest() for prompt in self.prompts]
        place = np.array([int.from_bytes(word, "little") for word in words]) / 2.0**64
        edges = np.searchsorted([held_out / 2, held_out], place, side="right")
        parts = {name: np.flatnonzero(edges == k) for k, name in enumerate((VAL, TEST, TRAIN))}
        return self._filled(parts, f"held_out = {held_out}")

    def _filled(self, rows: dict[str, Ints], cause: str) -> dict[str, Ints]:
        for name, part in rows.items():
            if not len(part):
                raise ValueError(f"{cause}: none of the {len(self.prompts)} rows of {self.path} is {name}; must be one")
        return rows

    def _encode(self) -> None:
        texts = [[self._split(text) for text in column] for column in (self.prompts, self.answers)]
        if self.vocabulary == BYTES:
            self.symbols: tuple = tuple(range(256))
        else:
            self.symbols = tuple(sorted({symbol for column in texts for text in column for symbol in text}))
        ids = {symbol: index for index, symbol in enumerate(self.symbols)}
        self.ans, self.end = len(ids), len(ids) + 1
        self.vocab_size = len(ids) + 2
        prompts, answers = ([[ids[symbol] for symbol in text] for text in column] for column in texts)
        self.begin = np.array([len(prompt) + 1 for prompt in prompts])  # where the answer does
        self.stop = self.begin + [len(answer) + 1 for answer in answers]
        self.sequence_length = int(self.stop.max()) - 1
        self.tokens = np.full((len(prompts), self.sequence_length + 1), self.end, np.int32)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            whole = [*prompt, self.ans, *answer]
            self.tokens[row, : len(whole)] = whole

    def _split(self, text: str) -> list:
        if self.vocabulary == BYTES:
            return list(text.encode())
        return text.split() if self.vocabulary == WORDS else list(text)

    def _set_groups(self, values: list[str] | None) -> None:
        """Numbers come in their own order, other difficulties in the alphabet's."""
        if values is None:
            self.kinds, self.kind = ("all",), np.zeros(len(self.prompts), np.int64)
        else:
            different = sorted(set(values), key=lambda v: (not _is_number(v), float(v) if _is_number(v) else 0, v))
            if len(different) > _MOST_GROUPS:
                count = len(different)
                raise ValueError(f"difficulty: {count} different values in {self.path}; must be ≤ {_MOST_GROUPS}")
            self.kinds = tuple("difficulty_" + re.sub(r"[^\w.-]", "_", value) for value in different)
            number = {value: index for index, value in enumerate(different)}
            self.kind = np.array([number[value] for value in values])
        repeated = [name for name, count in Counter(self.kinds).items() if count > 1]
        if repeated:
            raise ValueError(f"difficulty: two values in {self.path} are named {repeated[0]}; must differ in letters")
        self.groups: tuple[str, ...] = (*self.kinds, *(f"{SEEN}{kind}" for kind in self.kinds))

    def _arrays(self, rows: Ints, loss: str) -> Arrays:
        place = np.arange(self.tokens.shape[1])
        whole = place < self.stop[rows, None]
        answer = whole & (place >= self.begin[rows, None])
        tokens, targets = predict(self.tokens[rows].astype(np.int64), whole if loss == "all" else answer)
        arrays = {"tokens": tokens, "targets": targets, "scored": answer[:, 1:], "group": self.kind[rows]}
        return arrays | {"answer": np.zeros_like(tokens)}  # one answer a row


def _is_number(value: str) -> bool:
    try:
        return float(value) == float(value)
    except ValueError:
        return False


def _read(path: str | None) -> list[Record]:
    """Raises: FileNotFoundError or ValueError of one line."""
    if not path or Path(path).suffix not in (".csv", ".jsonl"):
        raise ValueError(f"path = {path!r}: must be a .csv or .jsonl file")
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"path = {path}: no such file; must be a .csv or .jsonl file")
    try:
        text = file.read_text(encoding="utf-8-sig")  # spreadsheets begin a file with a byte-order mark
    except UnicodeDecodeError as error:
        cause = f"{error.reason} at byte {error.start}"
        raise ValueError(f"path = {path}: cannot be read as UTF-8 text ({cause})") from error
    records = _csv(path, text) if file.suffix == ".csv" else _jsonl(path, text)
    if not records:
        raise ValueError(f"path = {path}: holds no rows; must have at least one of each split")
    return records


def _csv(path: str, text: str) -> list[Record]:
    records = []
    for number, record in enumerate(csv.DictReader(io.StringIO(text, newline="")), start=1):
        if None in record:
            raise ValueError(f"path = {path}: row {number} has more cells than the header; must have as many")
        records.append({name: value or "" for name, value in record.items()})
    return records


def _jsonl(path: str, text: str) -> list[Record]:
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                cause = f"line {number} is not JSON ({error.msg})"
                raise ValueError(f"path = {path}: {cause}; must be an object") from error
            if not isinstance(record, dict):
                raise ValueError(f"path = {path}: line {number} is not an object; must be one with a value per column")
            records.append({name: "" if value is None else str(value) for name, value in record.items()})
    return records
