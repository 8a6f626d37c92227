"""python -m ouro_lab.chaos [--quick] [PART …]: every row of docs/faults.md as a check, with what was measured."""

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

from ouro_lab.chaos import disk, hostile, kills, numbers, ranks, services, shards
from ouro_lab.chaos.tiny import Row
from ouro_lab.session import quiet

PARTS = {
    "kills": kills, "ranks": ranks, "disk": disk, "services": services, "shards": shards, "numbers": numbers,
    "hostile": hostile,
}  # fmt: skip
MARKS = {True: "ok", False: "FAILED", None: "not tried"}


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 all kept, 1 some were not, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m ouro_lab.chaos", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer kills and fewer inputs: minutes on one core")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    asked = parser.parse_args(arguments)
    unknown = [part for part in asked.parts if part not in PARTS]
    if unknown:
        parser.error(f"PART = {unknown[0]}: must be one of {', '.join(PARTS)}")
    torch.set_num_threads(1)  # children are forked, which threads do not survive
    import_module("ouro_lab.training.callbacks")  # once for all children
    quiet()
    logging.getLogger("lightning").setLevel(logging.ERROR)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ouro-chaos-") as folder:
        os.environ["OURO_CACHE"] = str(Path(folder) / "cache")
        kept = [
            _show(row) for part in asked.parts or PARTS for row in PARTS[part].rows(Path(folder) / part, asked.quick)
        ]
    print(f"{sum(kept)} of {len(kept)} rows hold, {time.monotonic() - began:.0f} s")
    return 0 if all(kept) else 1


def _show(row: Row) -> bool:
    lines = [f"{MARKS[row.ok]:9s} {row.fault}", f"   promise  {row.promise}", f"   measured {row.measured}"]
    print("\n".join(lines), flush=True)
    return row.ok is not False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
