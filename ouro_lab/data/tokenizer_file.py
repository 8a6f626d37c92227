"""Tokenizers as tokenizer.json, which `tokenizers` and transformers read: all of ours written, byte-level ones read."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import tokenizers
from tokenizers import pre_tokenizers

from ouro_lab.data.tokenizer import ByteLevel, ByteTokenizer, TextTokenizer

EOS = "<|endoftext|>"


class TokenizerFile(ByteLevel):
    """A byte-level tokenizer.json. Its special tokens are ids, never found in text: not even where text spells one.

    vocab_size: rows of the model's embedding, of which the file may leave some unused. where: for messages.

    Raises:
        ValueError: not a tokenizer, not byte-level, or with ids beyond `vocab_size`.
    """

    learns = False

    def __init__(self, text: str, eos: int, vocab_size: int, where: str = "tokenizer.json") -> None:
        self.text, self.eos, self.vocab_size, self.where = text, eos, vocab_size, where
        self.identity = f"file-{hashlib.sha256(f'{eos} {vocab_size} {text}'.encode()).hexdigest()[:12]}"
        self.restore(text)

    def train(self, texts: Iterable[str]) -> None:
        """It was trained before it was written."""

    def state(self) -> str:
        return self.text

    def restore(self, state: str) -> None:
        try:
            content = json.loads(state)
            decoder, normalizer = (content.get(key) for key in ("decoder", "normalizer"))
            plain = content | {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
            self.model = tokenizers.Tokenizer.from_str(json.dumps(plain))
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"{self.where}: not a tokenizer ({str(error).splitlines()[0]})") from None
        if normalizer is not None or not decoder or decoder.get("type") != "ByteLevel":
            raise ValueError(f"{self.where}: must be byte-level and without a normalizer, so that no byte is lost")
        largest = max([self.eos, *self.model.get_vocab().values()])
        if largest >= self.vocab_size:
            raise ValueError(
                f"{self.where}: has the id {largest}: must be below the model's vocab_size {self.vocab_size}"
            )


def tokenizer_files(tokenizer: TextTokenizer) -> dict[str, str]:
    """tokenizer.json and tokenizer_config.json, in which eos, also bos, is the special token `<|endoftext|>`.

    Raises:
        ValueError: a tokenizer that is neither ours nor byte-level.
    """
    content = _model(tokenizer)
    names = {index: name for name, index in content["model"]["vocab"].items()}
    eos = names.setdefault(tokenizer.eos, EOS)
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["model"]["vocab"][eos] = tokenizer.eos
    content["added_tokens"] = [{"id": tokenizer.eos, "content": eos, **special}]
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "bos_token": eos}
    about |= {"add_bos_token": False, "clean_up_tokenization_spaces": False}
    return {"tokenizer.json": _dump(content), "tokenizer_config.json": _dump(about)}


def _model(tokenizer: TextTokenizer) -> dict[str, Any]:
    if isinstance(tokenizer, ByteTokenizer):
        model = tokenizers.models.BPE({letter: byte for byte, letter in enumerate(_letters())}, [])
        whole = tokenizers.Tokenizer(model)
        whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        whole.decoder = tokenizers.decoders.ByteLevel()
        return json.loads(whole.to_str())
    if isinstance(tokenizer, ByteLevel):
        return json.loads(tokenizer.model.to_str())
    raise ValueError(f"tokenizer = {type(tokenizer).__name__}: must be byte-level, to be written as tokenizer.json")


def _letters() -> list[str]:
    """The byte-level alphabet by byte: printable bytes are themselves, the others letters from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _dump(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
