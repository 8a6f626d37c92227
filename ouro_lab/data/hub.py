"""Datasets of the Hugging Face hub, streamed: nothing is downloaded but what is tokenised."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ouro_lab.data.corpus import refuse_offline
from ouro_lab.data.files import Files
from ouro_lab.data.tasks.protocol import check_range


@dataclass(frozen=True)
class HuggingFace:
    """A dataset of the hub, or a local folder that `datasets.load_dataset` knows how to read.

    split: a whole split by name; validation and test are always cut here, by whole documents. first: so many
    documents from the beginning; None: as far as `train_tokens` asks, and then other tokens mean other held-out sets.
    A hub's dataset is known by its name alone; its shards' manifest holds a digest of what was read.
    """

    name: str
    config: str | None = None
    split: str = "train"
    column: str = "text"
    first: int | None = None

    def __post_init__(self) -> None:
        if "[" in self.split:
            raise ValueError(f"split = {self.split}: must be a split's name; its first N documents are first = N")
        if self.first is not None:
            check_range("first", self.first, 1)

    @property
    def label(self) -> str:
        return self.name.rstrip("/").rpartition("/")[2]

    @property
    def remote(self) -> bool:
        return not Path(self.name).is_dir()

    @property
    def open_ended(self) -> bool:
        return self.first is None

    def identity(self) -> str:
        name = self.name if self.remote else Files(f"{self.name}/**").digest()
        return f"{name} {self.config} {self.split} {self.column} {self.first}"

    def size(self) -> int | None:
        return None

    def documents(self) -> Iterator[str]:
        if self.remote:
            refuse_offline("name", self.name)
        for row in islice(self._rows(), self.first):
            if self.column not in row:
                raise ValueError(f"column = {self.column}: not in {self.name}; must be one of {', '.join(row)}")
            text = row[self.column]
            if not isinstance(text, str | None):
                raise ValueError(f"column = {self.column}: must hold text, holds {type(text).__name__} in {self.name}")
            yield text or ""

    def _rows(self) -> Iterator[dict]:
        import datasets  # here because it takes seconds

        try:
            yield from datasets.load_dataset(self.name, self.config, split=self.split, streaming=True)
        except Exception as error:  # of datasets, of the hub's client, of a file format
            cause = error.__cause__ or error
            reason = (str(cause).splitlines() or [type(cause).__name__])[0]
            raise FileNotFoundError(f"name = {self.name}: cannot be loaded by `datasets` ({reason})") from error
