"""What is made once per machine beside the shards: folders that appear whole, and tokenizers learned from text."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import cycle
from pathlib import Path

from filelock import FileLock

from ouro_lab.data.corpus import Corpus
from ouro_lab.data.decontamination import Overlap
from ouro_lab.data.documents import split_documents
from ouro_lab.data.shards import FORMAT
from ouro_lab.data.tasks.protocol import TRAIN
from ouro_lab.data.tokenizer import TextTokenizer
from ouro_lab.measured import cache_root

LEARN_BYTES = 1 << 25  # of training text that a tokenizer is learned from at most


def made_once(folder: Path, write: Callable[[Path], None]) -> None:
    """`write` fills a temporary folder that then takes its name at once: nobody sees half a cache."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            return
        prefix = f".making-{folder.name}-"
        for left in folder.parent.glob(f"{prefix}*"):  # of a killed process: the lock is ours
            shutil.rmtree(left)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
        try:
            write(temporary)
            temporary.chmod(0o755)  # mkdtemp lets nobody else read
            temporary.replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def learn(
    tokenizer: TextTokenizer,
    corpora: Sequence[Corpus],
    shares: Sequence[Fraction],
    holdout: int,
    decontaminated: str = "",
    overlap: Overlap | None = None,
) -> None:
    """Trains the tokenizer on training text of the corpora by their shares, or restores what was learned before."""
    if not tokenizer.learns:
        return
    named = [(corpus.identity(), str(share)) for corpus, share in zip(corpora, shares, strict=True)]
    facts = json.dumps([FORMAT, tokenizer.identity, named, holdout, decontaminated])
    name = hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()
    folder = cache_root() / "tokenizers" / f"{tokenizer.identity}-{name}"

    def write(target: Path) -> None:
        tokenizer.train(_sample(corpora, shares, holdout, overlap))
        (target / "tokenizer.json").write_text(tokenizer.state(), encoding="utf-8")

    made_once(folder, write)
    tokenizer.restore((folder / "tokenizer.json").read_text(encoding="utf-8"))


def _sample(
    corpora: Sequence[Corpus], shares: Sequence[Fraction], holdout: int, overlap: Overlap | None
) -> Iterator[str]:
    """As training will see the corpora: as much text as they hold, `LEARN_BYTES` at most, each having its share of it;
    one that holds less is repeated."""
    held = [
        _first(corpus, LEARN_BYTES * share, holdout, overlap) for corpus, share in zip(corpora, shares, strict=True)
    ]
    whole = min(LEARN_BYTES, sum(_bytes(text) for texts in held for text in texts))
    for texts, share in zip(held, shares, strict=True):
        given = Fraction(0)
        for text in cycle(texts):
            if given >= whole * share:
                break
            given += _bytes(text)
            yield text


def _first(corpus: Corpus, size: Fraction, holdout: int, overlap: Overlap | None) -> list[str]:
    """Training documents from the beginning that hold about `size` bytes."""
    texts: list[str] = []
    held = 0
    for split, text in split_documents(corpus, holdout):
        if held >= size:
            break
        if split == TRAIN and not (overlap and any(overlap.matches([text]))):
            texts.append(text)
            held += _bytes(text)
    return texts


def _bytes(text: str) -> int:
    return len(text.encode("utf-8"))
