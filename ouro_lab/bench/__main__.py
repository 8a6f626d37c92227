"""make bench: what our training step costs, as ratios against rivals that run beside it.

python -m ouro_lab.bench [CASE …] [--quick] [--json FILE]     all cases without CASE
python -m ouro_lab.bench curves [--out FOLDER]                step time and memory over loops, vocabulary, …
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"  # before `tokenizers` is imported: one thread a side

import torch

from ouro_lab import records
from ouro_lab.bench import machine
from ouro_lab.bench.cases import CASES
from ouro_lab.bench.curves import draw_curves
from ouro_lab.bench.table import Line, formatted, missed
from ouro_lab.bench.timing import Effort, load
from ouro_lab.config import ConfigError
from ouro_lab.training import execution

CURVES = "curves"


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, also where a target is missed: that is a finding; 2 for bad input."""
    asked = _parser().parse_args(arguments)
    unknown = [name for name in asked.cases if name not in (*CASES, CURVES)]
    if unknown:
        valid = ", ".join((*CASES, CURVES))
        print(f"error: case = {unknown[0]}: unknown; must be one of {valid}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    effort = Effort.quick() if asked.quick else Effort()
    if CURVES in asked.cases:
        draw_curves(asked.out or records.runs_root() / "bench", effort)
    names = [name for name in asked.cases or CASES if name != CURVES]
    try:
        if names:
            measure(names, effort, asked.json)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measure(names: Sequence[str], effort: Effort, file: Path | None) -> list[Line]:
    """Runs the cases, prints the table, and writes it with all that it depends on to `file`."""
    before, found = load(), machine.figures()
    print(machine.line(found), flush=True)
    lines: list[Line] = []
    for name in names:
        start = time.perf_counter()
        for line in CASES[name](effort):
            lines.append(line)
            print(formatted([line]).splitlines()[-1], flush=True)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    context = conditions(before) | {"rounds": effort.rounds, "machine": found}
    print(f"\n{formatted(lines)}\n\n{summary(lines, context)}")
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        records.write_json(file, {**records.provenance(), **context, "rows": [line.as_dict() for line in lines]})
    return lines


def conditions(before: list[float]) -> dict[str, Any]:
    compiled = execution.compiler_works()
    return {"threads": torch.get_num_threads(), "load": {"before": before, "after": load()}, "compiled": compiled}


def summary(lines: Sequence[Line], context: dict[str, Any]) -> str:
    blocks = "compiled, compiling not timed" if context["compiled"] else "not compiled: no C++ compiler works here"
    busy = " → ".join(f"{values[0]:.1f}" for values in context["load"].values() if values)
    late = missed(lines)
    verdict = f"missed: {', '.join(late)}" if late else "no target missed"
    side = f"threads {context['threads']} a side, load {busy}, {context['rounds']} rounds"
    return f"{side}, our blocks {blocks}\n{verdict}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ouro_lab.bench", description="Ratios against rivals.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(CASES)}; or {CURVES}. All but {CURVES}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the table goes too")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=f"where {CURVES} go")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
