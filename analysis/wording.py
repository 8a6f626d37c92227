"""What a person reads: numbers at a sensible length, metrics in words, and the sentence of a verdict."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from analysis.runs import StudyResult
from analysis.samples import positive_control, targets
from analysis.stability import same_grid
from analysis.verdict import ALPHA, Verdict
from ouro_lab.metrics_log import terms

QUANTITIES = {
    "parameters": "parameters",
    "body_parameters": "body parameters",
    "tokens": "tokens",
    "steps": "steps",
    "training_flops": "training FLOPs",
    "flops_per_token": "FLOPs per token",
    "kv_bytes_per_token": "KV-cache bytes per token",
    "activation_bytes": "activation bytes",
    "decode_flops": "decoding FLOPs per token",
}
SPLITS = {"val": "validation", "train": "training", "final": "test"}


def compact(x: float | None, unit: str = "") -> str:
    """96k, 7.8M, 1.4B; `–` where there is no number."""
    if x is None or not math.isfinite(x):
        return "–"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= 0.9995 * size:
            return f"{_digits(x / size)}{letter}{unit}"
    return f"{_digits(x) if x != int(x) else int(x)}{unit}"


def flops(x: float | None) -> str:
    """In SI units: 3.1 TFLOP."""
    if x is None or not math.isfinite(x):
        return "–"
    for size, letter in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= 0.9995 * size:
            return f"{_digits(x / size)} {letter}FLOP"
    return f"{x:.0f} FLOP"


def duration(seconds: float | None) -> str:
    """8 s, 3 min 20 s, 1 h 02 min."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def value(x: float | None, digits: int = 3) -> str:
    if x is None or not math.isfinite(x):
        return "–"
    return f"{round(x, digits) or 0.0:.{digits}f}".replace("-", "−")


def effect(x: float | None, interval: tuple[float, float] | None) -> str:
    """+0.55 [0.51, 0.59], to the decimals that the interval's width bears."""
    if x is None:
        return "–"
    half = (interval[1] - interval[0]) / 2 if interval else 0.0
    decimals = min(4, max(2, -math.floor(math.log10(half)))) if half > 0 else 3
    text = f"{x:+.{decimals}f}".replace("-", "−")
    text = text[1:] if float(f"{x:.{decimals}f}") == 0 else text  # no sign on a zero
    return f"{text} {span(interval, decimals)}" if interval else text


def span(interval: tuple[float, float] | None, decimals: int = 2) -> str:
    return f"[{value(interval[0], decimals)}, {value(interval[1], decimals)}]" if interval else "–"


def p_value(p: float | None) -> str:
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def ratio(x: float) -> str:
    """2.9 ×, 0.34 ×."""
    return f"{x:.2g} ×" if x < 10 else f"{x:.0f} ×"


def metric_words(metric: str) -> str:
    """`val/accuracy/hops_8` as `validation accuracy, hops 8`; of a difference both, joined by `less`."""
    if len(terms(metric)) > 1:
        return " less ".join(metric_words(term) for term in terms(metric))
    parts = metric.split("/")
    split = SPLITS.get(parts[0], "")
    parts = parts[1:] if split else parts
    text = ", ".join(re.sub(r"_loop(\d+)$", r" at loop \1", part).replace("_", " ") for part in parts)
    return f"{split} {text}".strip()


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def sentence(study: Mapping[str, Any], verdict: Verdict) -> str:
    """The verdict with its uncertainty, what was matched and its scope, or why there is none."""
    head = f"{verdict.arm} − {verdict.reference} at {verdict.metric}: "
    if verdict.refused:
        reasons = [f"{arm} seed {seed} {why}" for arm, seeds in verdict.missing.items() for seed, why in seeds.items()]
        shown = reasons if len(reasons) <= 4 else [*reasons[:4], f"{len(reasons) - 4} more"]
        missing = f" ({', '.join(shown)})" if shown and verdict.word.startswith("incomplete") else ""
        return f"{head}no verdict, {verdict.word}{missing}."
    contrast = study["contrasts"][verdict.name]
    test = f", paired t{_level(verdict)}" if verdict.interval else ""
    inner = [f"n = {verdict.n}{test}", rates(study, verdict), regime(contrast)]
    inner += [f"floor {verdict.floor:.3g}" if verdict.floor is not None else "", *_notes(verdict)]
    figures = f"{effect(verdict.effect, verdict.interval_adjusted)} ({'; '.join(part for part in inner if part)})"
    return f"{head}{figures}: {conclusion(verdict)} at {scope(study, verdict.arm)}."


def conclusion(verdict: Verdict) -> str:
    """The word with its qualifiers: `equivalent within ±0.05 (unmatched, exploratory)`."""
    word = verdict.word
    if word == "equivalent":
        word = f"equivalent within ±{verdict.bound:g}"
    if word == "no positive control" and verdict.bare_word != "inconclusive":
        word = f"no positive control (by the interval alone {verdict.bare_word})"
    return f"{word} ({', '.join(verdict.qualifiers)})" if verdict.qualifiers else word


def scope(study: Mapping[str, Any], arm: str) -> str:
    """`96k parameters, 7.8M tokens`, with the ratio to the paper's where the study states it.

    Tokens are those of training: the arm's own, and `trunk_tokens` of the model it starts from, if the study says so.
    """
    cost, stated = study["arms"][arm]["cost"], study.get("scope") or {}
    trained = cost["tokens"] if cost.get("steps") != 0 else 0  # an evaluation's tokens taught nobody
    cost = {**cost, "tokens": trained + (stated.get("trunk_tokens") or 0)}
    parts = []
    for quantity in ("parameters", "tokens"):
        text = f"{compact(cost[quantity])} {quantity}"
        paper = stated.get(f"paper_{quantity}")
        parts.append(f"{text} ({_share(cost[quantity] / paper)} the paper's {compact(paper)})" if paper else text)
    return ", ".join(parts)


def as_dict(result: StudyResult, verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    """verdict.json: everything numeric, with the sentences."""
    shown, how = positive_control(result)
    content = {
        "study": result.name,
        "hash": result.study["hash"],
        "registered": result.study.get("registered"),
        "alpha": ALPHA,
        "primary": next((name for name, verdict in verdicts.items() if verdict.primary), None),
        "contrasts": {
            name: {"sentence": sentence(result.study, verdict), "n": verdict.n, **asdict(verdict)}
            for name, verdict in verdicts.items()
        },
        "positive_control": {"shown": shown, "how": how},
        "targets": {name: asdict(check) for name, check in targets(result).items()},
        "counts": result.counts,
    }
    return _plain(content)


def _digits(x: float) -> str:
    return f"{x:.1f}" if abs(x) < 9.95 else f"{x:.0f}"


def _share(x: float) -> str:
    """`1/15,000 of`, `2.0 ×`."""
    return f"1/{float(f'{1 / x:.2g}'):,.0f} of" if x < 0.5 else f"{x:.1f} ×"


def _level(verdict: Verdict) -> str:
    return "" if math.isclose(verdict.level, 1 - ALPHA) else f", {100 * verdict.level:.3g} % interval after Holm"


def rates(study: Mapping[str, Any], verdict: Verdict) -> str:
    """How the learning rates of both arms were chosen."""
    arms = verdict.arm, verdict.reference
    if same_grid(study, verdict.metric, arms):
        return "all rates of one grid"
    status = {name: study["arms"][name]["lr_status"] for name in arms}
    said = set(status.values())
    return said.pop() if len(said) == 1 else ", ".join(f"{name}: {what}" for name, what in status.items())


def regime(contrast: Mapping[str, Any]) -> str:
    """`parameters and tokens equal, looped costs 2.9 × the training FLOPs`."""
    held = [row for row in contrast["match"] if row["held"]]
    exact = [QUANTITIES.get(row["quantity"], row["quantity"]) for row in held if abs(row["mismatch"]) < 5e-4]
    near = [row for row in held if abs(row["mismatch"]) >= 5e-4]
    parts = [f"{' and '.join(exact)} equal"] if exact else []
    parts += [f"{QUANTITIES.get(r['quantity'], r['quantity'])} equal to {100 * abs(r['mismatch']):.2g} %" for r in near]
    for row in contrast["match"]:
        free = not row["held"] and row["quantity"] in ("training_flops", "parameters", "tokens") and row["reference"]
        if free and abs(row["arm"] / row["reference"] - 1) >= 0.02:
            verb = {"training_flops": "costs", "parameters": "has", "tokens": "sees"}[row["quantity"]]
            what = {"training_flops": "FLOPs"}.get(row["quantity"], row["quantity"])
            parts.append(f"{contrast['arm']} {verb} {ratio(row['arm'] / row['reference'])} the {what}")
    return ", ".join(parts)


def _notes(verdict: Verdict) -> list[str]:
    notes = [note for note in verdict.notes if not note.startswith("positive control") or "met by" not in note]
    if verdict.rule == "equivalence" and verdict.bare_word == "inconclusive":
        n = verdict.seeds_for_power
        if n is None or n > verdict.n:
            need = f"needs n = {n}" if n else "is out of reach"
            notes.append(f"80 % power at ±{verdict.bound:g} {need}")
        else:
            notes.append(f"too near ±{verdict.bound:g} to tell")
    return notes


def _plain(content: Any) -> Any:
    """JSON's own types; what is not a finite number becomes null."""
    if isinstance(content, Mapping):
        return {str(key): _plain(item) for key, item in content.items()}
    if isinstance(content, (list, tuple)):
        return [_plain(item) for item in content]
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    return content
