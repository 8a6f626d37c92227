"""Token streams on disk, made once per (text, tokenizer, format) and read as memory maps by every run."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from ouro_lab.data.corpus import Documents, content_key
from ouro_lab.data.tasks.protocol import TRAIN
from ouro_lab.data.tokenizer import Ids, TextTokenizer
from ouro_lab.measured import cache_root

FORMAT = 1  # raise when the same text and tokenizer would give other files
_CHUNK = 256  # documents tokenised at a time


def token_streams(label: str, documents: Documents, tokenizer: TextTokenizer) -> Path:
    """The folder with `{split}.bin`, `tokenizer.json` and `facts.json`; the tokenizer is trained or restored.

    A stream is eos, document, eos, document, …, eos, so that every byte and every document's end is a target once.
    """
    keys = [content_key(texts) for texts in documents.values()]
    name = hashlib.blake2b(json.dumps([FORMAT, tokenizer.identity, keys]).encode(), digest_size=8).hexdigest()
    folder = cache_root() / "text" / f"{label}-{tokenizer.identity}-{name}"
    made_once(folder, lambda target: _write(target, documents, tokenizer))
    tokenizer.restore((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return folder


def open_stream(folder: Path, split: str) -> NDArray:
    dtype = json.loads((folder / "facts.json").read_text())["dtype"]
    return np.memmap(folder / f"{split}.bin", dtype=dtype, mode="r")


def made_once(folder: Path, write: Callable[[Path], None]) -> None:
    """`write` fills a temporary folder that then takes its name at once: nobody sees half a cache."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            return
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
        try:
            write(temporary)
            temporary.chmod(0o755)  # mkdtemp lets nobody else read
            temporary.replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _write(folder: Path, documents: Documents, tokenizer: TextTokenizer) -> None:
    tokenizer.train(documents[TRAIN])
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    facts = {"dtype": np.dtype(dtype).name, "vocab_size": tokenizer.vocab_size, "splits": {}}
    for split, texts in documents.items():
        tokens = _write_stream(folder / f"{split}.bin", texts, tokenizer, dtype)
        size = sum(len(text.encode("utf-8")) for text in texts)
        facts["splits"][split] = {"documents": len(texts), "bytes": size, "tokens": tokens}
    (folder / "tokenizer.json").write_text(tokenizer.state(), encoding="utf-8")
    (folder / "facts.json").write_text(json.dumps(facts, indent=1))


def _write_stream(path: Path, texts: Sequence[str], tokenizer: TextTokenizer, dtype: type) -> int:
    eos = np.array([tokenizer.eos], dtype)
    total = 1
    with path.open("wb") as file:
        eos.tofile(file)
        for start in range(0, len(texts), _CHUNK):
            encoded: list[Ids] = tokenizer.encode(texts[start : start + _CHUNK])
            pieces = [piece for ids in encoded for piece in (ids.astype(dtype), eos)]
            np.concatenate(pieces).tofile(file)
            total += sum(map(len, pieces))
    return total
