"""Tokens as text with the loops that made them, and a colour per loop, for a terminal and for a page."""

from collections.abc import Iterable, Iterator
from typing import Protocol

TERMINAL = (39, 44, 42, 220, 208, 196)  # of the 256 colours, from few loops to many


class Decoder(Protocol):
    def decode(self, ids: list[int]) -> str: ...


def pieces(tokenizer: Decoder, tokens: Iterable[tuple[int, int]]) -> Iterator[tuple[str, int]]:
    """Text and loops of (token, loops) as they come; a character of several tokens is as deep as its deepest.

    What never becomes a character comes at the end, as the tokenizer decodes it.
    """
    held: list[int] = []
    deepest = 0
    for token, loops in tokens:
        held.append(token)
        deepest = max(deepest, loops)
        text = tokenizer.decode(held)
        if text and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text, deepest
            held, deepest = [], 0
    if held and (text := tokenizer.decode(held)):
        yield text, deepest


def share(loop: int, loops: int) -> float:
    """Where a loop stands between the first, 0, and the last, 1."""
    return (loop - 1) / max(1, loops - 1)


def painted(text: str, loop: int, loops: int, colour: bool) -> str:
    """For a terminal: coloured by loop, or followed by it in brackets."""
    if not colour:
        return f"{text}[{loop}]"
    number = TERMINAL[round(share(loop, loops) * (len(TERMINAL) - 1))]
    return f"\N{ESC}[38;5;{number}m{text}\N{ESC}[0m"


def legend(loops: int, colour: bool) -> str:
    if not colour:
        return f"after each piece of text, the loops that made it, of {loops}"
    return "loops: " + " ".join(painted(str(loop), loop, loops, True) for loop in range(1, loops + 1))
