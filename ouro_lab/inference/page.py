"""A text as a page of its own, each piece coloured by the loops after which a rule reads it out, teacher-forced.

python -m ouro_lab.inference.page CKPT TEXT.txt PAGE.html --rule 'QExit(q=0.5)'

All tokens run all loops, so every key and value is there (the released code's rule); generation may differ where tokens
that exited early are attended to. A token's depth is that of the position that predicts it; the first has none.
"""

import argparse
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ouro_lab.inference.chat import longest
from ouro_lab.inference.exits import ExitRule, LoopView, survive
from ouro_lab.inference.generate import check_ids
from ouro_lab.inference.pieces import pieces, share
from ouro_lab.inference.rule_text import parse_rule
from ouro_lab.inference.slots import row_number
from ouro_lab.model.transformer import LoopedTransformer

STYLE = """
body{font:1.05rem/1.9 Georgia,serif;max-width:46rem;margin:3rem auto;padding:0 1rem;color:#111}
html{background:#fff}
header{font:.85rem/1.5 system-ui,sans-serif;color:#555;margin-bottom:2rem}
p{white-space:pre-wrap;overflow-wrap:anywhere}span{border-radius:.2em;padding:.1em 0}header span{padding:.1em .5em}"""


@torch.inference_mode()
def exit_depths(model: LoopedTransformer, tokens: Sequence[int], rule: ExitRule, seed: int = 0) -> list[int]:
    """Loops [S] after which the rule lets each position of one sequence exit, all loops being computed.

    Raises:
        ValueError: one line; no token, an id outside the vocabulary, or a rule that needs a gate which is not there.
    """
    if not len(tokens):
        raise ValueError("text is empty: must hold at least one token")
    check_ids("text", tokens, model.config.vocab_size)
    if rule.needs_gate and model.early_exit_gate is None:
        raise ValueError(f"rule = {rule}: needs an exit gate, which this model lacks; must be a rule without one")
    ids = torch.tensor([list(tokens)], device=model.embed_tokens.weight.device)
    depth = torch.full((len(tokens),), model.loops)
    row = torch.tensor([row_number(seed, position) for position in range(len(tokens))])
    previous, survival, gates = None, None, []
    for loop, state in enumerate(model.loop_states(ids), start=1):
        hidden = state.hidden[0]  # [S, d]
        wide = torch.promote_types(torch.float32, hidden.dtype)
        survival = hidden.new_zeros(len(tokens), dtype=wide) if survival is None else survival
        if state.gate_logit is not None:
            gates.append(state.gate_logit[0])
            survival = survive(survival, gates[-1])
        view = _view(model, loop, hidden, previous, survival, row, gates)
        depth = torch.where(rule.exits(view).cpu() & (depth == model.loops), min(loop, model.loops), depth)
        previous = hidden
    return depth.tolist()


def _view(
    model: LoopedTransformer,
    loop: int,
    hidden: Tensor,
    previous: Tensor | None,
    survival: Tensor,
    row: Tensor,
    gates: list[Tensor],
) -> LoopView:
    before = torch.zeros_like(hidden) if previous is None else previous
    return LoopView(
        loop=torch.full((len(hidden),), loop, device=hidden.device),
        hidden=hidden,
        previous=before,
        log_survival=survival,
        logits=lambda: hidden @ model.head_weight.t(),
        previous_logits=lambda: before @ model.head_weight.t(),
        row=row.to(hidden.device),
        gate_logits=torch.stack(gates) if gates else None,
    )


def page(title: str, coloured: Sequence[tuple[str, int]], loops: int) -> str:
    """HTML that needs nothing else, of (text, loops); what no loop predicted has 0 and no colour."""
    classes = "\n".join(f".l{loop}{{background:{_colour(loop, loops)}}}" for loop in range(1, loops + 1))
    key = " ".join(f'<span class="l{loop}">{loop}</span>' for loop in range(1, loops + 1))
    body = "".join(f'<span class="l{n}" title="{n} of {loops} loops">{escape(text)}</span>' for text, n in coloured)
    depths = [n for _, n in coloured if n] or [0]
    mean = f"mean {sum(depths) / len(depths):.2f} of {loops} over {len(depths)} pieces"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<style>{STYLE}
{classes}</style></head>
<body><header>{escape(title)}<br>loops {key} &nbsp; {mean}</header>
<p>{body}</p></body></html>
"""


def _colour(loop: int, loops: int) -> str:
    """From pale yellow to orange; text on it stays dark enough to read."""
    return f"hsl({52 - 28 * share(loop, loops):.0f} 95% {94 - 34 * share(loop, loops):.0f}%)"


def text_page(trunk: Any, text: str, rule: ExitRule, title: str) -> str:
    """Raises ValueError, one line, for a model without tokenizer or a text beyond its positions."""
    if trunk.tokenizer is None:
        raise ValueError("CKPT has no tokenizer: must be a model of text")
    tokens, limit = [int(token) for token in trunk.tokenizer.encode([text])[0]], longest(trunk)
    if len(tokens) > limit:
        raise ValueError(f"text has {len(tokens)} tokens: must be at most {limit}")
    depths = exit_depths(trunk.model, tokens, rule)
    coloured = list(pieces(trunk.tokenizer, zip(tokens, [0, *depths[:-1]], strict=True)))
    return page(title, coloured, trunk.model.loops)


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m ouro_lab.inference.page", description="A text, coloured by loops.")
    parser.add_argument("checkpoint", metavar="CKPT")
    parser.add_argument("text", type=Path, metavar="TEXT", help="a file in UTF-8")
    parser.add_argument("page", type=Path, metavar="PAGE", help="the HTML file to write")
    parser.add_argument("--rule", required=True, metavar="RULE", help="such as 'QExit(q=0.5)'")
    asked = parser.parse_args(arguments)
    try:
        from ouro_lab.interop import open_trunk

        rule, text = parse_rule(asked.rule), asked.text.read_text("utf-8")
        title = f"{asked.checkpoint}, {asked.rule}"
        asked.page.write_text(text_page(open_trunk(asked.checkpoint), text, rule, title), "utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
