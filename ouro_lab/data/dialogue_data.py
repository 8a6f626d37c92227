"""`DialogueData`: whole dialogues in rows, the loss on what the assistant says alone."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ouro_lab.data.chat_template import Messages, encode
from ouro_lab.data.datamodules import OrderedData
from ouro_lab.data.dialogues import Dialogues
from ouro_lab.data.packing import ShuffledRows, spread
from ouro_lab.data.random import Ints
from ouro_lab.data.tasks.protocol import IGNORE, TEST, TRAIN, VAL, Arrays, Floors, check_range
from ouro_lab.data.tokenizer import BPETokenizer, Ids, TextTokenizer

Encoded = tuple[Ids, NDArray[np.bool_]]


class DialogueRows:
    """Rows of `length` tokens, each of whole dialogues one after the other: eos, dialogue, eos, dialogue, …, eos.

    Filled from the first dialogue to the last; one that no longer fits begins the next row, and eos fills what is left.
    A dialogue's end is learned where an answer ends it: the eos after its last token.
    """

    def __init__(self, dialogues: Sequence[Encoded], length: int, eos: int) -> None:
        self.eos = eos
        sizes = [len(ids) + 1 for ids, _ in dialogues]  # with the eos before it
        row, used, places = 0, 0, []
        for size in sizes:
            if used + size > length:
                row, used = row + 1, 0
            places.append((row, used))
            used += size
        self.full = row + 1 if sizes else 0
        self.buffer = np.full((self.full, length + 1), eos, np.int32)  # [R, S + 1]
        self.learned = np.zeros((self.full, length + 1), bool)
        for (row, start), (ids, said) in zip(places, dialogues, strict=True):
            end = start + 1 + len(ids)
            self.buffer[row, start + 1 : end] = ids
            self.learned[row, start + 1 : end] = said
            self.learned[row, end] = said[-1]

    def read(self, rows: Ints) -> Arrays:
        """tokens, targets and documents [B, S]."""
        tokens = self.buffer[rows].astype(np.int64)
        targets = np.where(self.learned[rows], tokens, IGNORE)[:, 1:]
        return {
            "tokens": tokens[:, :-1],
            "targets": targets,
            "documents": np.cumsum(tokens[:, :-1] == self.eos, axis=1),
        }


class DialogueData(OrderedData):
    """Dialogues of a source, packed whole into rows of `length` tokens; attention stays within a dialogue.

    The tokenizer is that of the stages before: one that would learn from the dialogues is refused. val_tokens,
    test_tokens: rows of the source's split at even distances with about so many tokens; None takes all. Everything is
    held in memory.
    """

    def __init__(
        self,
        dialogues: Dialogues,
        tokenizer: TextTokenizer,
        length: int = 1024,
        batch_size: int = 16,
        val_tokens: int | None = 65_536,
        test_tokens: int | None = None,
        eval_batch_size: int | None = None,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed, workers)
        check_range("length", length, 2)
        self.sizes = {VAL: val_tokens, TEST: test_tokens}
        for split, tokens in self.sizes.items():
            if tokens is not None:
                check_range(f"{split}_tokens", tokens, length)
        if isinstance(tokenizer, BPETokenizer):
            raise ValueError("tokenizer = BPETokenizer: would learn from the dialogues; must be one that is given")
        self.dialogues, self.tokenizer, self.length = dialogues, tokenizer, length
        self.vocab_size = tokenizer.vocab_size
        self.rows: dict[str, DialogueRows] = {}

    def prepare_data(self) -> None:
        """Reads and encodes the dialogues, once.

        Raises:
            ValueError: one that is longer than a row, a split without any, or fewer training rows than a batch.
        """
        if not self.rows:
            loaded = self.dialogues.load()
            rows = {split: self._packed(split, loaded[split]) for split in (TRAIN, VAL, TEST)}
            if rows[TRAIN].full < self.batch_size:
                what = f"{self.dialogues.label} has {rows[TRAIN].full} training rows of length = {self.length}"
                raise ValueError(f"batch_size = {self.batch_size}: {what}; must be at most that")
            self.rows, self.train_rows = rows, ShuffledRows(rows[TRAIN], self.seed)
            self.chosen = {split: spread(rows[split].full, size, self.length) for split, size in self.sizes.items()}

    def setup(self, stage: str) -> None:
        self.prepare_data()  # Lightning asks only one process of a machine to prepare

    def read_train(self, indices: Ints) -> Arrays:
        return self.train_rows.read(indices)

    def read_evaluation(self, split: str, indices: Ints) -> Arrays:
        return self.rows[split].read(self.chosen[split][indices])

    def evaluation_size(self, split: str) -> int:
        self.prepare_data()
        return len(self.chosen[split])

    def floors(self) -> Floors:
        """None: a loss on answers has no shortcut's to stand beside it."""
        return {}

    def _packed(self, split: str, dialogues: Sequence[Messages]) -> DialogueRows:
        if not dialogues:
            raise ValueError(f"dialogues = {self.dialogues.label}: none for {split}; must have some in every split")
        encoded = [encode(messages, self.tokenizer) for messages in dialogues]
        longest = max(len(ids) + 1 for ids, _ in encoded)
        if longest > self.length:
            what = f"{self.dialogues.label} has a dialogue of {longest} tokens"
            raise ValueError(f"length = {self.length}: {what}; must be at least that")
        return DialogueRows(encoded, self.length, self.tokenizer.eos)
