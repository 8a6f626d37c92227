"""A terminal in which a trained model goes on from what is typed, each piece coloured by the loops it took.

python -m ouro_lab.inference.chat CKPT [--rule 'QExit(q=0.5)'] [--tokens 100] [--temperature 0.8]
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any, TextIO

from ouro_lab.inference.cache import POLICIES
from ouro_lab.inference.engine import Engine, Request
from ouro_lab.inference.exits import ExitRule
from ouro_lab.inference.generate import Token, stream
from ouro_lab.inference.pieces import legend, painted, pieces
from ouro_lab.inference.rule_text import parse_rule
from ouro_lab.inference.sampling import Sampling

LENGTH = 2048  # positions, where a checkpoint does not say what it was trained on


class Chat:
    """Prompt and continuation, one after the other; nothing is remembered between prompts."""

    def __init__(
        self, trunk: Any, rule: ExitRule | None, tokens: int, sampling: Sampling, seed: int, decode: str
    ) -> None:
        if trunk.tokenizer is None:
            raise ValueError("CKPT has no tokenizer: must be a model of text")
        self.tokenizer, self.rule, self.tokens, self.sampling = trunk.tokenizer, rule, tokens, sampling
        self.engine = Engine(trunk.model, 1, longest(trunk), decode=decode)
        self.engine.check_rule(rule)
        self.seeds = count(seed)

    @property
    def loops(self) -> int:
        return self.engine.slots.loops

    def answer(self, text: str) -> Iterator[Token]:
        """Raises ValueError, one line, if the text is empty or too long."""
        prompt = [int(token) for token in self.tokenizer.encode([text])[0]]
        stop = [self.tokenizer.eos]
        return stream(self.engine, [Request(prompt, next(self.seeds))], self.tokens, self.rule, self.sampling, stop)

    def talk(self, lines: Iterable[str], out: TextIO) -> None:
        """Answers every line on `out`, with the mean of the loops; what is wrong with a line is said there too."""
        colour = out.isatty()
        print(legend(self.loops, colour), file=out)
        for line in lines:
            try:
                self._show(line.rstrip("\n"), out, colour)
            except ValueError as error:
                print(f"error: {error}", file=out)

    def _show(self, text: str, out: TextIO, colour: bool) -> None:
        made: list[Token] = []

        def noted() -> Iterator[tuple[int, int]]:
            for token in answer:
                made.append(token)
                yield token.token, token.loops

        answer = self.answer(text)
        for piece, loops in pieces(self.tokenizer, noted()):
            print(painted(piece, loops, self.loops, colour), end="", file=out, flush=True)
        mean = sum(token.loops for token in made) / len(made)
        print(f"\n({len(made)} tokens, {mean:.2f} loops of {self.loops} on average)", file=out)


def longest(trunk: Any) -> int:
    """Positions that a trunk was made for."""
    return trunk.config.get("max_position_embeddings") or (trunk.data or {}).get("length") or LENGTH


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 for bad input."""
    asked = _parser().parse_args(arguments)
    try:
        from ouro_lab.interop import open_trunk

        sampling = Sampling(asked.temperature, asked.top_k, asked.top_p)
        rule = parse_rule(asked.rule) if asked.rule else None
        chat = Chat(open_trunk(asked.checkpoint), rule, asked.tokens, sampling, asked.seed, asked.decode)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        chat.talk(_typed() if sys.stdin.isatty() else sys.stdin, sys.stdout)
    except KeyboardInterrupt:
        print()
    return 0


def _typed() -> Iterator[str]:
    while True:
        try:
            yield input("> ")
        except EOFError:
            return


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ouro_lab.inference.chat", description="Text, coloured by loops.")
    parser.add_argument("checkpoint", metavar="CKPT", help="a trunk's folder, a run's directory, or a checkpoint in it")
    parser.add_argument("--rule", metavar="RULE", help="when a token exits, such as 'QExit(q=0.5)'; default: never")
    parser.add_argument("--tokens", type=int, default=100, metavar="N", help="new tokens at most")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="X", help="0, the default, is greedy")
    parser.add_argument("--top-k", type=int, metavar="K")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the first prompt; each next has one more")
    parser.add_argument("--decode", default="last_available", metavar="POLICY", help=", ".join(POLICIES))
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
