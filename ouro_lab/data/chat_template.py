"""Dialogues as text and as tokens: ChatML, the template of the paper's mid-training and fine-tuning data.

`<|im_start|>role⏎content<|im_end|>` per message, a line break between two. A tokenizer that has the two markers among
its tokens, as Ouro's has, gives each as one; any other spells them.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ouro_lab.data.tasks.protocol import check_choice
from ouro_lab.data.tokenizer import Ids, TextTokenizer

START, END = "<|im_start|>", "<|im_end|>"
ROLES = ("system", "user", "assistant")
ANSWERS = "assistant"
MESSAGE = re.compile(rf"{re.escape(START)}(\w+)\n(.*?){re.escape(END)}", re.DOTALL)

Messages = Sequence[Mapping[str, str]]  # role, content


def check_messages(messages: Messages) -> None:
    """Raises: ValueError for an unknown role, a marker within a content, or an end that is no answer."""
    for message in messages:
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise ValueError(f"message {message!r}: must have role and content, nothing else")
        check_choice("role", message["role"], ROLES)
        content = message["content"]
        if not isinstance(content, str) or START in content or END in content:
            raise ValueError(f"content {content!r:.60}: must be text without {START} and {END}")
    if not messages or messages[-1]["role"] != ANSWERS:
        raise ValueError("messages: must end with one of the assistant")


def render(messages: Messages) -> str:
    """The text of a dialogue."""
    return "\n".join(f"{START}{message['role']}\n{message['content']}{END}" for message in messages)


def prompt(messages: Messages) -> str:
    """The text after which the answer to the last message begins."""
    return f"{render(messages)}\n{START}{ANSWERS}\n"


def parse(text: str) -> list[dict[str, str]]:
    """The messages of a rendered dialogue."""
    return [{"role": role, "content": content} for role, content in MESSAGE.findall(text)]


def encode(messages: Messages, tokenizer: TextTokenizer) -> tuple[Ids, NDArray[np.bool_]]:
    """The tokens [n] and which of them a model learns to say: the assistant's contents, each with its end."""
    ids, learned = [], []
    for place, message in enumerate(messages):
        said = message["role"] == ANSWERS
        parts = [("\n", False)] if place else []
        parts += [(START, False), (f"{message['role']}\n", False), (message["content"], said), (END, said)]
        for text, wanted in parts:
            tokens = _tokens(text, tokenizer)
            ids.append(tokens)
            learned.append(np.full(len(tokens), wanted))
    return np.concatenate(ids), np.concatenate(learned)


def _tokens(text: str, tokenizer: TextTokenizer) -> Ids:
    model = getattr(tokenizer, "model", None)
    own = model.token_to_id(text) if model is not None and text in (START, END) else None
    return tokenizer.encode([text])[0] if own is None else np.array([own], np.int64)
