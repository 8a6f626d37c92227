"""The table of `make bench`: each case yields its rows, ours against a rival, with the ratio it is held to.

All of it on one thread a side. Random tokens, untrained weights: neither changes what a step costs.
"""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from statistics import median

import torch

from ouro_lab import processes, records
from ouro_lab.bench import decoding, memory
from ouro_lab.bench.answering import answer_exits
from ouro_lab.bench.machine import fastest_gemm
from ouro_lab.bench.overhead import overhead, own_runs
from ouro_lab.bench.packing import tokenise_and_pack
from ouro_lab.bench.products import alone
from ouro_lab.bench.step import Spec, Step, check_same_loss, eager, ours, unrolled_llama
from ouro_lab.bench.table import Line, Row, Skipped
from ouro_lab.bench.timing import Effort, Samples, interleave, ratio, seconds
from ouro_lab.model import ModelConfig
from ouro_lab.study import Study

SMALL = Spec(
    layers=4, loops=4, width=256, heads=4, vocab_size=4096, batch=8, length=256, stage_one=True, dtype="bfloat16"
)
LARGE_VOCABULARY = replace(SMALL, vocab_size=49_152, batch=4)
WIDE = replace(SMALL, layers=8, width=512, heads=8)
# conf/data/p_hop.yaml: four symbols, eight hop tokens and "~"; a hop token, then 48 symbols.
P_HOP = Spec(layers=2, loops=3, width=64, heads=4, vocab_size=13, batch=64, length=49, stage_one=False, dtype="float32")


def large_vocabulary(effort: Effort) -> Iterator[Line]:
    name = "large_vocabulary"
    yield against_eager(name, LARGE_VOCABULARY, effort, target=1.5)
    yield memory_against_eager(name, LARGE_VOCABULARY, target=0.30)


def small_vocabulary(effort: Effort) -> Iterator[Line]:
    yield against_eager("small_vocabulary", SMALL, effort, target=1.4)


def p_hop(effort: Effort) -> Iterator[Line]:
    """Ours in the faster dtype against (a) in float32, and against its own products."""
    spec = faster_dtype(P_HOP)
    mine = ours(spec)
    rival = eager(P_HOP)
    check_same_loss(Step(mine.model, mine.loss, P_HOP), rival)
    samples = interleave({"ours": mine, "rival": rival, "products": alone(spec)}, effort)
    what = f"p-hop step, ours {spec.dtype}, rival (a) float32: speed"
    yield row("p_hop", what, samples, ("rival", "ours"), 1.8, at_most=False)
    what = f"p-hop step against its own products and softmaxes alone, {spec.dtype}: time"
    yield row("p_hop_products", what, samples, ("ours", "products"), 1.6, at_most=True)


def peak(effort: Effort) -> Iterator[Line]:
    """The FLOP/s of a step, by our analytic causal count, as a share of the best product's, in turn with it."""
    step, (gemm, _) = ours(WIDE), fastest_gemm(torch.bfloat16)
    samples = interleave({"ours": step, "product": gemm}, effort)
    flops = WIDE.tokens * WIDE.cost.flops_per_token
    share = ratio(samples, "product", "ours") * flops / gemm.flops
    rates = flops / median(samples["ours"]), gemm.flops / median(samples["product"])
    yield Row("peak", f"{describe(WIDE)}: share of the product peak", share, 0.60, False, *rates, "FLOP/s", samples)


def run_overhead(effort: Effort) -> Iterator[Line]:
    for study in ("p_hop", "text"):
        yield overhead(study, effort)


def start(effort: Effort) -> Iterator[Line]:
    """A run's command until it has found its run, which is done already; its step and its data come after that."""
    if sys.platform != "linux":
        yield Skipped("start", "runs are forked on Linux alone")
        return
    with own_runs():
        done = Study("p_hop", ["study.lr=null"]).expand()[0]
        records.begin(done.directory, done.identity(), done.config)
        records.finish(done.directory, "done")

        def begin(fork: bool) -> None:
            code = processes.start(done.command, dict(os.environ), done.directory / "log.txt", fork).wait()
            assert code == 0, (done.directory / "log.txt").read_text()

        samples = interleave({"ours": lambda: begin(True), "rival": lambda: begin(False)}, effort)
    what = "start of a p_hop run, forked, against a new Python: time"
    yield row("start", what, samples, ("ours", "rival"), 0.25, at_most=True)


def recompute(effort: Effort) -> Iterator[Line]:
    """T = 8 against T = 1: with recomputation a loop should add its state and little else."""
    if "recompute" not in {field.name for field in fields(ModelConfig)}:
        yield Skipped("recompute", "the model has no option `recompute`")
    elif not memory.measurable():
        yield unmeasurable("recompute")
    else:
        many, one = (replace(SMALL, loops=loops, recompute=True) for loops in (8, 1))
        peaks = memory.peak_bytes("ours", many), memory.peak_bytes("ours", one)
        what = f"{describe(many)}, against T = 1, both recomputing: peak memory"
        yield Row("recompute", what, peaks[0] / peaks[1], 1.25, True, *peaks, "B")


def tokenise(effort: Effort) -> Iterator[Line]:
    yield tokenise_and_pack(effort)


def honest(effort: Effort) -> Iterator[Line]:
    """Rival (a) with Llama's two norms and untied layers against Llama: (a) must not be a straw man."""
    spec = replace(SMALL, layers=SMALL.layers * SMALL.loops, loops=1, stage_one=False)
    rival = unrolled_llama(spec)
    if rival is None:
        yield Skipped("honest", "transformers is not installed: pip install -e '.[eval]'")
        return
    samples = interleave({"ours": eager(spec, norms=2), "rival": rival}, effort)
    what = f"rival (a) with two norms against transformers' Llama, {spec.layers} layers, {spec.dtype}: time"
    yield row("honest", what, samples, ("ours", "rival"), 1.10, at_most=True)


CASES: dict[str, Callable[[Effort], Iterator[Line]]] = {
    "large_vocabulary": large_vocabulary,
    "small_vocabulary": small_vocabulary,
    "p_hop": p_hop,
    "peak": peak,
    "overhead": run_overhead,
    "start": start,
    "recompute": recompute,
    "tokenise": tokenise,
    "honest": honest,
    "decode": decoding.decode,
    "decode_exits": decoding.decode_exits,
    "answer_exits": answer_exits,
    "decode_cache": decoding.decode_cache,
    "speculation": decoding.speculation,
}


def against_eager(name: str, spec: Spec, effort: Effort, target: float) -> Row:
    """How many times faster our step is than rival (a)'s in the same dtype."""
    mine, rival = ours(spec), eager(spec)
    check_same_loss(mine, rival)
    samples = interleave({"ours": mine, "rival": rival}, effort)
    return row(name, f"{describe(spec)}, against rival (a): speed", samples, ("rival", "ours"), target, at_most=False)


def memory_against_eager(name: str, spec: Spec, target: float) -> Line:
    if not memory.measurable():
        return unmeasurable(f"{name}_memory")
    mine, theirs = (memory.peak_bytes(side, spec) for side in ("ours", "eager"))
    what = f"{describe(spec)}, against rival (a): peak memory above model and optimiser"
    return Row(f"{name}_memory", what, mine / theirs, target, True, mine, theirs, "B")


def row(name: str, what: str, samples: Samples, by: tuple[str, str], target: float, at_most: bool) -> Row:
    """A row of times, whose ratio is that of `by`'s two sides; ours and the other are shown in this order."""
    other = by[1] if by[0] == "ours" else by[0]
    medians = median(samples["ours"]), median(samples[other])
    kept = {side: samples[side] for side in ("ours", other)}
    return Row(name, what, ratio(samples, *by), target, at_most, *medians, "s", kept)


def faster_dtype(spec: Spec) -> Spec:
    """The spec in whichever dtype our step is quicker here."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        step = ours(replace(spec, dtype=dtype))
        found[dtype] = min([seconds(step) for _ in range(5)][2:])
    return replace(spec, dtype=min(found, key=lambda dtype: found[dtype]))


def describe(spec: Spec) -> str:
    loss = "Stage I" if spec.stage_one else "last-loop"
    shape = f"{spec.layers}⊗{spec.loops}, d {spec.width}, V {spec.vocab_size:,}, B {spec.batch}, S {spec.length}"
    return f"{loss} step {shape}, {spec.dtype}"


def unmeasurable(name: str) -> Skipped:
    return Skipped(name, "peak memory needs Linux's /proc/self/clear_refs")
