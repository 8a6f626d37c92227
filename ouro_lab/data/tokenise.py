"""From a corpus to verified token shards: in parallel, with progress, and safe to kill at any instant.

A piece's shards are renamed into place, then the piece is entered in a journal; the manifest comes last. So a killed
run goes on after the last entry, and no reader ever sees a folder without a manifest.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from itertools import chain, takewhile
from pathlib import Path

from filelock import FileLock

from ouro_lab.data.decontamination import Overlap, line
from ouro_lab.data.documents import SPLITS
from ouro_lab.data.encoding import Encoder, Recipe
from ouro_lab.data.journal import Entry, Journal
from ouro_lab.data.parallel import Rate, in_order
from ouro_lab.data.shard_set import ShardSet
from ouro_lab.data.shards import FORMAT, MANIFEST, Manifest, Shard, fault, sweep, write_atomically
from ouro_lab.data.tasks.protocol import TRAIN
from ouro_lab.data.tokenizer import tokenizer_digest

REPORT = "decontamination.json"


def tokenise(recipe: Recipe, overlap: Overlap | None = None, workers: int = 1) -> ShardSet:
    """The corpus's shards, made where they are missing. workers: processes that tokenise.

    Raises: what the corpus raises; DamagedError when the manifest is damaged, or a shard that cannot be made again.
    """
    folder = recipe.folder()
    if not (folder / MANIFEST).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / MANIFEST).exists():
                _Making(folder, recipe, overlap).finish(workers)
    shards = ShardSet(folder, recipe, overlap)
    shards.check_files()
    return shards


class _Making:
    """An unfinished folder, held under its lock. done: the journal's entries whose shards are there."""

    def __init__(self, folder: Path, recipe: Recipe, overlap: Overlap | None) -> None:
        self.folder, self.recipe, self.overlap = folder, recipe, overlap
        self.encoder = Encoder(folder, recipe.tokenizer, overlap)
        self.journal = Journal(folder / "journal.jsonl")
        self.done: list[Entry] = []
        self._keep(list(takewhile(self._present, self.journal.entries())))

    def finish(self, workers: int) -> None:
        """Tokenises what is left and writes the manifest."""
        limit = self.recipe.tokens
        rate = Rate(self.recipe.corpus.label, limit or self.recipe.corpus.size(), "tokens" if limit else "B")
        with closing(self._entries(rate, workers)) as entries:
            for entry in entries:
                self.done.append(entry)
                if limit and self._train_tokens() > limit:  # a row's last target is one more
                    break
        rate.end()
        self._keep(self.done)
        if self.overlap is not None:
            self._report(self.overlap)
        self._manifest().write(self.folder)
        self.journal.path.unlink()

    def _entries(self, rate: Rate, workers: int) -> Iterator[Entry]:
        """Of every piece; a journal's entry counts only while the corpus still gives the text that it was made of."""
        known, self.done = self.done, []
        stream = self.recipe.pieces()
        for entry, piece in zip(known, stream, strict=False):
            if piece.digest() != entry["source"]:
                self._keep(self.done)
                stream = chain([piece], stream)
                break
            rate.skip(self._amount(entry))
            yield entry
        for entry in in_order(self.encoder, stream, workers):
            self.journal.append(entry)
            rate.add(self._amount(entry))
            yield entry

    def _keep(self, entries: list[Entry]) -> None:
        self.done = entries
        self.journal.restart(entries)
        sweep(self.folder, {path.name for entry in entries for path, _ in self._files(entry)})

    def _present(self, entry: Entry) -> bool:
        return not any(fault(path, shard, self.encoder.dtype, whole=False) for path, shard in self._files(entry))

    def _files(self, entry: Entry) -> Iterator[tuple[Path, Shard]]:
        for split in SPLITS:
            shard = Shard(**entry["splits"][split])
            yield self.folder / shard.name(split, entry["index"]), shard

    def _amount(self, entry: Entry) -> int:
        if self.recipe.tokens:
            return entry["splits"][TRAIN]["tokens"]
        return sum(shard["bytes"] for shard in entry["splits"].values())

    def _train_tokens(self) -> int:
        return sum(entry["splits"][TRAIN]["tokens"] for entry in self.done)

    def _manifest(self) -> Manifest:
        tokenizer = self.recipe.tokenizer
        source = hashlib.sha256("".join(entry["source"] for entry in self.done).encode()).hexdigest()
        facts = {
            "format": FORMAT,
            "dtype": self.encoder.dtype.str,
            "tokenizer": {"identity": tokenizer.identity, "sha256": tokenizer_digest(tokenizer)},
            "source": {"corpus": self.recipe.corpus.label, "sha256": source, "holdout": self.recipe.holdout},
        }
        return Manifest(facts | {"pieces": self.done})

    def _report(self, overlap: Overlap) -> None:
        report = overlap.report(entry["overlap"] for entry in self.done)
        write_atomically(self.folder / REPORT, json.dumps(report, indent=1).encode())
        print(line(self.recipe.corpus.label, report), flush=True)
