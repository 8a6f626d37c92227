"""A finished folder of shards: its streams, its documents, and the mending of what was damaged."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from filelock import FileLock

from ouro_lab.data.decontamination import Overlap
from ouro_lab.data.documents import SPLITS
from ouro_lab.data.encoding import Encoder, Recipe
from ouro_lab.data.shards import DamagedError, Manifest, ShardedStream, fault


class ShardSet:
    """A finished folder of shards, and how to make one of them again."""

    def __init__(self, folder: Path, recipe: Recipe, overlap: Overlap | None) -> None:
        self.folder, self.recipe, self.overlap = folder, recipe, overlap
        self.manifest = Manifest.read(folder)

    def stream(self, split: str) -> ShardedStream:
        return ShardedStream(self.folder, self.manifest, split, self.mend)

    def texts(self, split: str) -> Iterator[str]:
        """The documents, decoded from their tokens: every tokenizer here is lossless."""
        stream, tokenizer = self.stream(split), self.recipe.tokenizer
        for index in range(len(stream.shards)):
            tokens = stream.shard(index)
            ends = np.flatnonzero(tokens == tokenizer.eos)
            for ids in np.split(tokens, ends + 1):
                if len(ids) > 1:  # not the eos that opens the stream
                    yield tokenizer.decode(ids.tolist())

    def mend(self, index: int, wrong: str) -> None:
        """Makes the shards of piece `index` again from the corpus, which must still give the same.

        Raises: DamagedError of one line where it does not, or is remote.
        """
        remote = f"{self.recipe.corpus.label} is read over a network; delete the file and prepare the data again"
        if self.recipe.corpus.remote:
            raise DamagedError(f"{wrong}; {remote}")
        self.make(index, wrong)

    def make(self, index: int, wrong: str) -> None:
        """Raises: DamagedError when the corpus is not there or no longer gives the same tokens."""
        entry, label = self.manifest.pieces[index], self.recipe.corpus.label
        with FileLock(f"{self.folder}.lock"):
            try:
                piece = next(islice(self.recipe.pieces(), index, None), None)
            except (FileNotFoundError, ValueError) as error:
                raise DamagedError(f"{wrong}; cannot be made again ({error})") from error
            same = piece is not None and piece.digest() == entry["source"]
            if not same or self._encoder()(piece)["splits"] != entry["splits"]:
                raise DamagedError(f"{wrong}; {label} no longer gives the same tokens")
            print(f"{wrong}; made again from {label}", flush=True)

    def check_files(self) -> None:
        """Makes again what is missing or has another size, which costs no reading."""
        for split in SPLITS:
            for index, shard in enumerate(self.manifest.shards(split)):
                path = self.folder / shard.name(split, index)
                wrong = fault(path, shard, self.manifest.dtype, whole=False)
                if wrong:
                    self.make(index, f"shard {path.name} in {self.folder}: {wrong}")

    def _encoder(self) -> Encoder:
        return Encoder(self.folder, self.recipe.tokenizer, self.overlap)
