"""Questions of a file of one's own, put to a model as lm-eval puts them: its answer is its likeliest option."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ouro_lab.data.choice_metrics import ChoiceMetrics, Choices
from ouro_lab.data.datamodules import OrderedData
from ouro_lab.data.random import Ints
from ouro_lab.data.tasks.protocol import IGNORE, TEST, Arrays, Floors, check_range
from ouro_lab.data.tokenizer import TextTokenizer

OURO_VOCABULARY = 49_152


class Question(NamedTuple):
    pairs: tuple[tuple[str, str], ...]  # context and continuation of each option
    answer: int
    group: int
    lengths: tuple[float, ...]


class Row(NamedTuple):
    """One option of a question: all tokens, and how many of them at the end are the option's."""

    tokens: Ints
    continuation: int


class FixedSet(NamedTuple):
    """Of each row, an option: `owner` its question, and `option` which of the question's it is."""

    questions: list[Question]
    rows: list[Row]
    owner: Ints
    option: Ints


class Questions(OrderedData):
    """A JSONL file; a line is an object with

        prompt, options   a text and its continuations; or options alone, as pairs [context, continuation]
        answer            the right option, counted from 0 (default 0)
        group             perhaps with parts, as mmlu/anatomy
        lengths           perhaps: what each option's log-probability is divided by (lm-eval's acc_norm)

    A line without options is a prompt, whose one option is the end of the document. A line of one option is an open
    question with its answer. Groups are those that are asked for: a line belongs to `mmlu` if its group is that or
    begins with `mmlu/`; lines of no such group are left out. Without `groups` all lines are taken.

    tokenizer: the model's; None where no model is given yet. fold, folds: `test` is every `folds`-th question from
    `fold` on, `val` the others, so that runs whose folds differ have different questions and their spread is that of
    questions. length: tokens of a row at most; a longer text loses its beginning. positions: tokens of a test set, to
    be charged while the file is not there. what: what the file must hold, for the message that says so.

    Scored is the last token of a question's prompt, once a question: its target begins the right option. Rows are
    padded to the longest of their split. Nothing is trained on.

    Raises:
        ValueError, FileNotFoundError: one line naming the field or the file and line, and what would be valid.
    """

    def __init__(
        self,
        path: str | None,
        tokenizer: TextTokenizer | None,
        groups: tuple[str, ...] = (),
        length: int = 2048,
        fold: int = 0,
        folds: int = 1,
        positions: int = 0,
        what: str = "questions",
        batch_size: int = 8,
        workers: int = 0,
    ) -> None:
        super().__init__(batch_size, batch_size, 0, workers)
        check_range("length", length, 2)
        check_range("folds", folds, 1)
        check_range("fold", fold, 0, folds - 1)
        self.path, self.tokenizer, self.groups, self.length = path, tokenizer, tuple(groups), length
        self.fold, self.folds, self.positions, self.what = fold, folds, positions, what
        self.vocab_size = OURO_VOCABULARY if tokenizer is None else tokenizer.vocab_size
        self.questions: list[Question] = []
        self._sets: dict[str, FixedSet] = {}

    def prepare_data(self) -> None:
        if not self.questions:
            file = Path(self.path).expanduser() if self.path else None
            if file is None or not file.is_file():
                raise FileNotFoundError(f"data.path = {self.path}: no such file; must be JSONL: {self.what}")
            lines = file.read_text(encoding="utf-8").splitlines()
            read = [self._read(line, f"{file}: line {i}") for i, line in enumerate(lines, 1) if line.strip()]
            self.questions = [question for question in read if question is not None]
            self._check_groups(file)

    def setup(self, stage: str) -> None:
        self.prepare_data()

    def read_train(self, indices: Ints) -> Arrays:
        raise ValueError("do = fit: questions are for evaluation; must be evaluate")

    def read_evaluation(self, split: str, indices: Ints) -> Arrays:
        questions, rows, owner, option = self._split(split)
        tokens = np.zeros((len(indices), _width(rows)), np.int64)
        targets = np.full_like(tokens, IGNORE)
        scored = np.zeros_like(tokens, dtype=bool)
        for place, index in enumerate(indices):
            row, size = rows[index], len(rows[index].tokens) - 1
            first = size - row.continuation
            tokens[place, :size] = row.tokens[:-1]
            targets[place, first:size] = row.tokens[first + 1 :]
            scored[place, first] = option[index] == questions[owner[index]].answer
        group = np.array([questions[owner[index]].group for index in indices], np.int64)
        return {"tokens": tokens, "targets": targets, "scored": scored, "group": group, "row": indices}

    def evaluation_size(self, split: str) -> int:
        return len(self._split(split).rows)

    def evaluation_tokens(self, split: str) -> int:
        """Positions computed, padding among them; `positions` where there is no file or no tokenizer yet."""
        if not self.ready:
            return self.positions
        rows = self._split(split).rows
        return len(rows) * _width(rows)

    @property
    def ready(self) -> bool:
        """Whether there are a file and a tokenizer to read it with."""
        return self.tokenizer is not None and bool(self.path) and Path(str(self.path)).expanduser().is_file()

    @property
    def test_questions(self) -> list[Question]:
        return self._split(TEST).questions

    def metrics(self, loops: int, parameters: int | None = None) -> ChoiceMetrics:
        return ChoiceMetrics(loops, self.groups, self._choices())

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("loss", *(f"{name}{group}" for name in ("accuracy", "gain") for group in self._suffixes))

    def floors(self) -> Floors:
        """Accuracy of guessing among a question's options; nothing where the questions are not there."""
        if not self.ready:
            return {}
        choices = self._choices()
        chance = 1 / choices.counts
        kinds = [np.ones(len(chance), bool), *(choices.group == index for index in range(len(self.groups)))]
        what = "a guess among the options"
        return {
            f"accuracy{name}": {"value": float(chance[kind].mean()), "what": what}
            for name, kind in zip(self._suffixes, kinds, strict=True)
            if kind.any()
        }

    @property
    def _suffixes(self) -> tuple[str, ...]:
        return ("", *(f"/{group}" for group in self.groups))

    def _choices(self) -> Choices:
        questions = self.test_questions
        return Choices.of(
            [question.lengths for question in questions],
            [question.answer for question in questions],
            [question.group for question in questions],
        )

    def _split(self, split: str) -> FixedSet:
        if split not in self._sets:
            self.prepare_data()
            if self.tokenizer is None:
                raise ValueError("data.tokenizer: missing; the checkpoint must have one, as questions are text")
            number = range(len(self.questions))
            chosen = [self.questions[i] for i in number if (i % self.folds == self.fold) == (split == TEST)]
            if not chosen:
                raise ValueError(f"data.folds = {self.folds}: {self.path} has no question for {split}")
            rows = [self._row(*pair) for question in chosen for pair in question.pairs]
            counts = [len(question.pairs) for question in chosen]
            option = np.concatenate([np.arange(count) for count in counts])
            self._sets[split] = FixedSet(chosen, rows, np.repeat(np.arange(len(counts)), counts), option)
        return self._sets[split]

    def _row(self, context: str, continuation: str) -> Row:
        """As lm-eval splits them: blanks at a context's end begin the option; no context is the end of a document."""
        kept = context.rstrip() if continuation else context
        tokenizer = self.tokenizer
        assert tokenizer is not None
        whole, before = tokenizer.encode([context + continuation, kept])
        before = before if len(before) else np.array([tokenizer.eos], np.int64)
        after = whole[len(before) if kept else 0 :] if continuation else np.array([tokenizer.eos], np.int64)
        return Row(np.concatenate([before, after])[-self.length - 1 :], min(len(after), self.length))

    def _read(self, line: str, where: str) -> Question | None:
        try:
            row: dict[str, Any] = json.loads(line)
            options = row.get("options", [""])
            pairs = tuple((row["prompt"], x) if isinstance(x, str) else (str(x[0]), str(x[1])) for x in options)
            answer, lengths = int(row.get("answer", 0)), tuple(map(float, row.get("lengths", [1.0] * len(pairs))))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"{where}: not a question ({type(error).__name__}: {error})") from None
        if not 0 <= answer < len(pairs):
            raise ValueError(f"{where}: answer = {answer}: must be from 0 to {len(pairs) - 1}, one of its options")
        if len(lengths) != len(pairs) or min(lengths) <= 0:
            raise ValueError(f"{where}: lengths = {list(lengths)}: must be {len(pairs)} numbers > 0")
        group = self._group(str(row.get("group", "")))
        return None if group is None else Question(pairs, answer, group, lengths)

    def _group(self, name: str) -> int | None:
        if not self.groups:
            return 0
        return next((i for i, group in enumerate(self.groups) if name == group or name.startswith(f"{group}/")), None)

    def _check_groups(self, file: Path) -> None:
        found = {question.group for question in self.questions}
        if not self.questions:
            raise ValueError(f"data.path = {file}: has no question of {', '.join(self.groups) or 'any group'}")
        for index, group in enumerate(self.groups):
            if index not in found:
                raise ValueError(f"data.groups: {file} has no question of {group}; must be JSONL: {self.what}")


def _width(rows: list[Row]) -> int:
    """Positions of every row: all tokens of the longest but its last, which is a target alone."""
    return max(len(row.tokens) for row in rows) - 1
