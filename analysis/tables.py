"""The tables of a report."""

import re
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis import survival, wording
from analysis.blocks import Table
from analysis.figures import levels_of, sweep_values
from analysis.parabola import fit_rates
from analysis.runs import StudyResult
from analysis.samples import ArmSample, arm_sample, shown_runs, targets
from analysis.thresholds import success_rates
from analysis.verdict import Verdict
from analysis.wording import compact, duration, p_value, span, value

MET = {True: "met", False: "not met", None: "open"}


def arms(result: StudyResult, metric: str | None) -> Table:
    """Shape, cost and rate of each arm; of `metric` the mean ± SD and every seed."""
    checks = targets(result)
    header = ["arm", "shape", "parameters", "FLOPs/token", "tokens", "learning rate"]
    header += ["n", f"{metric}, mean ± SD", "every seed"] if metric else ["rate is"]
    header += ["target"] if checks else []
    rows = []
    for name, arm in result.study["arms"].items():
        cost, lr = arm["cost"], arm["lr"]
        row = [name, arm.get("shape") or "–", compact(cost["parameters"]), compact(cost["flops_per_token"])]
        row += [compact(cost["tokens"]), "–" if lr is None else f"{lr:g}"]
        row += _values(result, name, metric) if metric else [arm["lr_status"]]
        check = checks.get(name)
        row += [f"{check.demand}: {MET[check.met]}" if check else "–"] if checks else []
        rows.append(row)
    words = ("arm", "shape", "every seed", "target", "rate is")
    return Table(header, rows, left=tuple(index for index, name in enumerate(header) if name in words))


def contrasts(verdicts: Mapping[str, Verdict]) -> Table:
    header = ["contrast", "claim", "n", "difference [interval]", "p", "p (Holm)", "same again", "detectable"]
    header += ["verdict"]
    rows = []
    for name, verdict in verdicts.items():
        row = [name + (" (primary)" if verdict.primary else ""), claim(verdict), f"{verdict.n}/{verdict.expected}"]
        if verdict.refused:
            rows.append([*row, *["–"] * 5, wording.conclusion(verdict)])
            continue
        row += [wording.effect(verdict.effect, verdict.interval_adjusted), p_value(verdict.p), p_value(verdict.p_holm)]
        rows.append([*row, span(verdict.repeat), value(verdict.detectable), wording.conclusion(verdict)])
    return Table(header, rows, left=(0, 1, 8))


def claim(verdict: Verdict) -> str:
    """What the rule asks, in words."""
    pair = f"{verdict.arm} v {verdict.reference}"
    return f"{pair}: {demand(verdict)}{f' at {verdict.metric}' if verdict.rule == 'superiority' else ''}"


def demand(verdict: Verdict) -> str:
    """`better by more than 0.05`, `within ±0.05`."""
    if verdict.rule == "superiority":
        return f"better by more than {verdict.bound:g}" if verdict.bound else "better"
    return f"within ±{verdict.bound:g}" if verdict.rule == "equivalence" else "no claim, an estimate"


def matches(result: StudyResult) -> Table:
    """What each contrast holds equal and what it leaves free."""
    rows = []
    for name, contrast in result.study["contrasts"].items():
        for row in contrast["match"]:
            share = f"{100 * row['mismatch']:+.2f} %".replace("-", "−")
            held = f"held to {100 * contrast['limit']:g} %" if row["held"] else "free"
            quantity = wording.QUANTITIES.get(row["quantity"], row["quantity"])
            rows.append([name, quantity, compact(row["arm"]), compact(row["reference"]), share, held])
    return Table(["contrast", "quantity", "arm", "reference", "mismatch", "regime"], rows, left=(0, 1, 5))


def costs(result: StudyResult) -> Table:
    """Analytic cost per arm, the parts of its FLOPs, and the measured seconds of its runs."""
    header = ["arm", "body parameters", "training FLOPs", "body / attention / head / gate", "KV bytes/token"]
    header += ["activation bytes", "decoding FLOPs/token", "seconds/run, mean"]
    rows = []
    runs = shown_runs(result)
    for name, arm in result.study["arms"].items():
        cost = arm["cost"]
        parts = [cost.get("flops_by_part", {}).get(part, 0.0) for part in ("body", "attention", "head", "gate")]
        shares = " / ".join(f"{100 * part / sum(parts):.0f} %" for part in parts) if sum(parts) else "–"
        row = [name, compact(cost.get("body_parameters")), wording.flops(cost["training_flops"]), shares]
        row += [compact(cost.get(key)) for key in ("kv_bytes_per_token", "activation_bytes", "decode_flops")]
        rows.append([*row, duration(runs.loc[(runs["arm"] == name) & (runs["state"] == "done"), "seconds"].mean())])
    return Table(header, rows)


def by_level(result: StudyResult, pattern: str, word: str) -> Table | None:
    """Mean ± SD per arm over the levels (`{}` in `pattern`) of a final metric."""
    before, after = (re.escape(part) for part in pattern.split("{}"))
    levels = levels_of(result.runs, re.compile(rf"final/{before}(\w+?){after}"))
    if not levels:
        return None
    runs, rows = shown_runs(result), []
    for name in result.study["arms"]:
        mine = runs[(runs["arm"] == name) & (runs["state"] == "done")]
        if len(mine):
            rows.append([name, *[_mean_sd(mine[f"final/{pattern.format(level)}"].dropna()) for level in levels]])
    return Table(["arm", *[f"{word} {level}" for level in levels]], rows) if rows else None


def floors(result: StudyResult) -> Table:
    found = result.study.get("floors") or {}
    rows = [[metric, value(floor["value"]), floor.get("what") or ""] for metric, floor in found.items()]
    return Table(["metric", "floor", "what reaches it"], rows, left=(0, 2))


def success(result: StudyResult, primary: Verdict | None) -> tuple[Table, str] | None:
    """Success probability and time to threshold per arm, and the log-rank test of the primary contrast."""
    found = success_rates(result)
    if not found:
        return None
    rows = []
    for arm, one in found.items():
        mean = f"{one.mean_step[0]:,.0f} {span(one.mean_step[1:], 0)}" if one.mean_step else "–"
        row = [arm, f"≥ {one.threshold:g}", f"{one.successes} of {one.n}", span(one.wilson), span(one.exact), mean]
        rows.append(row)
    header = ["arm", "threshold", "solved", "Wilson 95 %", "Clopper–Pearson 95 %", "restricted mean step to it"]
    note = "Times are the first validation at the threshold; runs that never reach it are censored at their last."
    pair = [found[name] for name in (primary.arm, primary.reference) if name in found] if primary else []
    if len(pair) == 2 and all(one.times is not None for one in pair):
        p = p_value(survival.log_rank(*[one.times for one in pair]))
        note += f" Log-rank test of {pair[0].arm} against {pair[1].arm}: p {p if p.startswith('<') else f'= {p}'}."
    return Table(header, rows), note


def sweep(result: StudyResult) -> Table:
    """Every seed at every rate; the chosen one marked."""
    rows = []
    for arm, content in result.study["sweep"].items():
        found = sweep_values(result, arm)
        for lr in content["grid"]:
            mine = found[np.isclose(found["lr"], lr)]
            texts = ["diverged" if row.state == "diverged" else value(row.value, 4) for row in mine.itertuples()]
            mean = value(mine["value"].mean(), 4) if len(mine) and mine["value"].notna().all() else "–"
            chosen = "chosen" if lr == content.get("best") else ""
            rows.append([arm, f"{lr:g}", ", ".join(texts) or "not run", mean, chosen])
    metric = next(iter(result.study["sweep"].values()))["metric"]
    return Table(["arm", "learning rate", "every seed", f"final {metric}, mean", ""], rows, left=(0, 4))


def sweep_fits(result: StudyResult) -> Table:
    """The parabola in log rate: where its optimum lies and what the chosen and the best shared rate cost."""
    rows, shared = [], _shared_rate(result)
    for arm, content in result.study["sweep"].items():
        found, best = sweep_values(result, arm), content.get("best")
        place = "–" if best is None else "inside the grid" if content.get("inside") else "at the grid's edge"
        try:
            fit = fit_rates(found["lr"], found["value"], bool(_higher(content)))
        except ValueError:
            rows.append([arm, "–" if best is None else f"{best:g}", place, "–", "–", "–"])
            continue
        optimum = "none (no curvature)" if fit.optimum is None else f"{fit.optimum:.2g}"
        regrets = [value(fit.regret(lr), 4) if lr else "–" for lr in (best, shared)]
        rows.append([arm, "–" if best is None else f"{best:g}", place, optimum, *regrets])
    at = f"regret at the shared {shared:g}" if shared else "regret at a shared rate"
    return Table(["arm", "chosen", "which is", "fitted optimum", "regret at the chosen", at], rows, left=(0, 2))


def runs(result: StudyResult) -> Table:
    """Every run of today's list."""
    header = ["run", "phase", "state", "steps", "time", "reason"]
    rows = []
    for run in result.runs.itertuples():
        steps = "–" if np.isnan(run.steps) else f"{run.steps:,.0f}"
        rows.append([run.id, run.phase, run.state, steps, duration(run.seconds), run.reason])
    return Table(header, rows, left=(0, 1, 2, 5))


def _values(result: StudyResult, arm: str, metric: str) -> list[str]:
    sample = arm_sample(result, arm, metric)
    unmeasured = sample.missing and all(why.startswith("no final/") for why in sample.missing.values())
    if sample.expected and unmeasured and not _ended(sample):
        return ["–", "–", "not measured"]
    each = {seed: value(x) for seed, x in sample.values.items()} | dict.fromkeys(sample.diverged, "diverged")
    each |= sample.missing
    found = ", ".join(each[seed] for seed in result.study["seeds"])
    return [f"{_ended(sample)}/{sample.expected}", _mean_sd(sample.values.values()), found or "–"]


def _ended(sample: ArmSample) -> int:
    """Seeds with a value or a divergence."""
    return sample.expected - len(sample.missing)


def _mean_sd(values: Any) -> str:
    """SD over seeds of one run's value, not the error of the mean."""
    values = [float(x) for x in values]
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{value(statistics.fmean(values))}{spread}"


def _higher(content: Mapping[str, Any]) -> bool:
    """Whether the sweep maximised: the chosen rate's mean is the largest."""
    means = {float(lr): float(mean) for lr, mean in content["mean"].items()}
    best = content.get("best")
    return best in means and means[best] == max(means.values()) != min(means.values())


def _shared_rate(result: StudyResult) -> float | None:
    """The one rate of all grids that is best on average over arms, diverged rates excluded."""
    sweeps = result.study["sweep"]
    means = [{float(lr): float(mean) for lr, mean in content["mean"].items()} for content in sweeps.values()]
    common = set.intersection(*[{lr for lr, mean in arm.items() if np.isfinite(mean)} for arm in means])
    sign = -1 if all(_higher(content) for content in sweeps.values()) else 1
    return min(sorted(common), key=lambda lr: sign * sum(arm[lr] for arm in means)) if common else None
