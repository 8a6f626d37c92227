"""Writes a study's run directories as docs/design.md states them, with invented but p-hop-like numbers."""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

STEPS, TOKENS_PER_STEP, VAL_EVERY = 1500, 3072, 100
SHAPES = {"looped": "2⊗3", "iso_parameter": "2⊗1", "iso_flop": "6⊗1"}
LOOPS = {"looped": 3, "iso_parameter": 1, "iso_flop": 1}
FLOPS = {"looped": 1.91e6, "iso_parameter": 0.66e6, "iso_flop": 1.91e6}
PARAMETERS = {"looped": 96_256, "iso_parameter": 96_256, "iso_flop": 288_000}
# Final accuracy at eight hops, then how fast it falls from one hop to eight.
ACCURACY = {"looped": 0.976, "iso_parameter": 0.43, "iso_flop": 0.981}
NOISE = {"looped": 0.008, "iso_parameter": 0.012, "iso_flop": 0.006}
HOPS = tuple(f"hops_{k}" for k in range(1, 9))


@dataclass
class Fake:
    """What a fake study contains; tests change a field and write it."""

    name: str = "p_hop"
    seeds: tuple[int, ...] = (0, 1, 2)
    contrasts: dict[str, dict[str, Any]] = field(default_factory=lambda: contrasts())
    final: dict[tuple[str, int], dict[str, float]] = field(default_factory=dict)  # (arm, seed) → overriding values
    states: dict[tuple[str, int], str] = field(default_factory=dict)
    change: Callable[[dict[str, Any]], None] = lambda study: None

    def write(self, root: Path) -> Path:
        folder = root / self.name
        study = study_of(self)
        self.change(study)
        for run in study["runs"]:
            state = self.states.get((run["arm"], run["seed"]), "done")
            if state != "to do":
                write_run(folder / run["id"], run, study, state, self.final.get((run["arm"], run["seed"]), {}))
        write_json(folder / "study.json", study)
        write_json(folder / "registration.json", {study["hash"]: {"time": "2026-01-01T00:00:00Z", "commit": "c0ffee"}})
        return folder


def contrasts() -> dict[str, dict[str, Any]]:
    common = {"metric": "accuracy/hops_8", "higher_is_better": True, "bound": 0.05, "limit": 0.02}
    return {
        "depth_by_reuse": {
            "arm": "looped", "reference": "iso_parameter", "equal": ["parameters", "tokens"], **common,
            "rule": "superiority", "primary": True, "match": match("looped", "iso_parameter", ("parameters", "tokens")),
        },
        "cost_of_tying": {
            "arm": "looped", "reference": "iso_flop", "equal": ["training_flops", "tokens"], **common,
            "rule": "equivalence", "primary": False, "match": match("looped", "iso_flop", ("training_flops", "tokens")),
        },
    }  # fmt: skip


def match(arm: str, reference: str, held: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = []
    for quantity in ("parameters", "tokens", "training_flops", "kv_bytes_per_token"):
        a, r = (float(cost(name)[quantity]) for name in (arm, reference))
        rows.append({"quantity": quantity, "arm": a, "reference": r, "mismatch": a / r - 1, "held": quantity in held})
    return rows


def cost(arm: str) -> dict[str, Any]:
    tokens = STEPS * TOKENS_PER_STEP
    parts = {"body": 0.8, "attention": 0.15, "head": 0.05, "gate": 0.0}
    return {
        "shape": SHAPES[arm], "parameters": PARAMETERS[arm], "body_parameters": PARAMETERS[arm] - 1024,
        "flops_per_token": FLOPS[arm], "flops_by_part": {name: share * FLOPS[arm] for name, share in parts.items()},
        "steps": STEPS, "tokens": tokens, "training_flops": FLOPS[arm] * tokens,
        "kv_bytes_per_token": 1024.0 * LOOPS[arm], "activation_bytes": 2.0e7 * LOOPS[arm],
        "decode_flops": FLOPS[arm] / 3,
    }  # fmt: skip


def study_of(fake: Fake) -> dict[str, Any]:
    targets = {"looped": {"at_least": 0.95}, "iso_parameter": {"below": 0.65}, "iso_flop": {"at_least": 0.95}}
    arms = {
        arm: {
            "overrides": [f"backbone={arm}"], "shape": SHAPES[arm], "lr": 0.002, "lr_matched": True,
            "lr_status": "rates swept in p_hop_lr, optimum inside", "cost": cost(arm),
            "target": {"metric": "accuracy/hops_8", **targets[arm]},
        }
        for arm in SHAPES
    }  # fmt: skip
    scope = {"parameters": 96_256, "tokens": STEPS * TOKENS_PER_STEP, "paper_parameters": None, "paper_tokens": None}
    floor = {"value": 0.27, "what": "most frequent symbol of the prompt's last eight"}
    return {
        "name": fake.name,
        "question": "Does looping a two-layer stack give it the depth that p-hop induction needs?",
        "hypothesis": "2⊗3 solves eight hops, as 6⊗1 does; 2⊗1 does not.",
        "claim": ["S03"],
        "hash": "abcd1234",
        "registered": {"hash": "abcd1234", "time": "2026-01-01T00:00:00Z", "commit": "c0ffee", "seen": 0},
        "seeds": list(fake.seeds),
        "command": f"make experiment NAME={fake.name}",
        "arms": arms,
        "contrasts": fake.contrasts,
        "positive_control": {"arm": "iso_flop", "metric": "accuracy/hops_8", "at_least": 0.95},
        "floors": {"accuracy/hops_8": floor},
        "scope": scope,
        "figures": {
            "curve": ["val/accuracy/hops_8", "val/loss"], "difficulty": "accuracy/hops_",
            "loops": "accuracy_loop{t}/hops_8",
        },
        "runs": [identity(fake.name, arm, 0.002, seed, "main") for arm in SHAPES for seed in fake.seeds],
        "sweep": None,
    }  # fmt: skip


def identity(study: str, arm: str, lr: float, seed: int, phase: str) -> dict[str, Any]:
    name = f"{arm}-{lr:g}-{seed}-{abs(hash_of(arm, lr, seed)):08x}"
    return {"id": name, "study": study, "arm": arm, "lr": lr, "seed": seed, "hash": name[-8:], "phase": phase}


def hash_of(arm: str, lr: float, seed: int) -> int:
    return (sum(map(ord, arm)) * 7919 + round(lr * 1e6) * 104729 + seed * 31) % 2**32


def write_run(
    folder: Path,
    run: dict[str, Any],
    study: dict[str, Any],
    state: str,
    final: Mapping[str, float],
    penalty: float = 0.0,
) -> None:
    """All files of a run's directory that the report reads. penalty: added to every loss."""
    folder.mkdir(parents=True)
    arm, costs = run["arm"], study["arms"][run["arm"]]["cost"]
    write_json(folder / "run.json", {**run, "command": f"python -m ouro_lab.run study={run['study']}", "overrides": []})
    hardware = {"cpu": "Test CPU", "cores": 2, "threads": 1, "memory_gib": 8.0, "gpus": []}
    git = {"commit": "c0ffee0123456789", "dirty": False}
    write_json(folder / "record.json", {"git": git, "versions": {"torch": "2"}, "hardware": hardware, "cost": costs})
    stop = {"done": STEPS, "diverged": 400, "failed": 300, "running": 700}[state]
    rows = curve(arm, run["seed"], stop, penalty)
    if state == "diverged":
        rows.append({"step": stop + 5, "time": 1.0, "train/loss": "NaN"})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reason = {"diverged": "train/loss = nan", "failed": "OSError: disk full"}.get(state, "")
    content = {"state": state, "attempts": 3 if state == "failed" else 1, "reason": reason, "pid": os.getpid()}
    write_json(folder / "state.json", {**content, "step": stop, "steps": STEPS})
    if state in ("done", "diverged"):
        metrics = {} if state == "diverged" else {**final_metrics(arm, run["seed"], penalty), **prefixed(final)}
        totals = {"tokens": stop * TOKENS_PER_STEP, "flops": costs["training_flops"] * stop / STEPS}
        seconds = 1e-10 * costs["training_flops"] * stop / STEPS + run["seed"] / 3
        write_json(folder / "final.json", {"metrics": metrics, "seconds": seconds, "steps": stop, **totals})


def prefixed(values: Mapping[str, float]) -> dict[str, float]:
    return {f"final/{name}": value for name, value in values.items()}


def level(arm: str, seed: int) -> float:
    return ACCURACY[arm] + NOISE[arm] * float(np.random.default_rng((seed, len(arm))).standard_normal())


def by_hop(top: float) -> dict[str, float]:
    """One hop is solved by all; accuracy falls towards eight hops."""
    return {group: 1 - (1 - top) * (index / 7) ** 1.5 for index, group in enumerate(HOPS)}


def final_metrics(arm: str, seed: int, penalty: float = 0.0) -> dict[str, float]:
    accuracy = by_hop(level(arm, seed))
    loss = 1.2 * (1 - sum(accuracy.values()) / 8) + 0.02 + penalty
    found = {"accuracy": sum(accuracy.values()) / 8, "loss": loss, **{f"accuracy/{k}": v for k, v in accuracy.items()}}
    for loop in range(1, LOOPS[arm] + 1):
        top = 0.27 + (level(arm, seed) - 0.27) * (loop / LOOPS[arm]) ** 2
        found |= {f"accuracy_loop{loop}/{k}": v for k, v in by_hop(top).items()} | {f"loss_loop{loop}": loss / loop}
    return prefixed(found | {"val/loss": loss + 0.001, "val/accuracy/hops_8": accuracy["hops_8"] - 0.002})


def curve(arm: str, seed: int, stop: int, penalty: float = 0.0) -> list[dict[str, Any]]:
    noise = np.random.default_rng((seed, len(arm), 1))
    rows = []
    for step in range(25, stop + 1, 25):
        seconds = 1e-10 * FLOPS[arm] * TOKENS_PER_STEP
        row = {"step": step, "time": 1.7e9 + step * seconds, "train/loss": 1.4 * math.exp(-step / 400) + penalty}
        row |= {"optim/lr": 0.002, "total/tokens": step * TOKENS_PER_STEP, "perf/step_seconds": seconds}
        rows.append(row)
        if step % VAL_EVERY == 0:
            rise = 1 / (1 + math.exp(-(step - 650 - 40 * (seed % 10)) / 90))
            top = 0.27 + (level(arm, seed) - 0.27) * rise + 0.004 * float(noise.standard_normal())
            scores = {f"val/accuracy/{group}": value for group, value in by_hop(top).items()}
            loss = 1.2 * (1 - sum(scores.values()) / 8) + 0.02 + penalty
            rows.append({"step": step, "time": row["time"], "val/loss": loss, **scores})
    return rows


def write_sweep(root: Path, seeds: tuple[int, ...] = (100, 101)) -> Path:
    """A learning-rate study: no seeds, no contrasts; the largest rate of `looped` diverged on one seed."""
    folder = root / "p_hop_lr"
    study = study_of(Fake(name="p_hop_lr", seeds=(), contrasts={}))
    grid = [0.001, 0.002, 0.004, 0.008]
    runs = [identity("p_hop_lr", arm, lr, seed, "lr") for arm in SHAPES for lr in grid for seed in seeds]
    study |= {"runs": runs, "positive_control": None, "question": "Which learning rate suits each p-hop arm?"}
    study["sweep"] = {}
    for arm in SHAPES:
        for run in [run for run in runs if run["arm"] == arm]:
            state = "diverged" if (arm, run["lr"], run["seed"]) == ("looped", 0.008, 101) else "done"
            write_run(folder / run["id"], run, study, state, {}, 0.05 * math.log2(run["lr"] / 0.003) ** 2)
        means = {lr: float(np.mean([final_metrics(arm, s)["final/val/loss"] for s in seeds])) for lr in grid}
        means = {f"{lr:g}": mean + 0.05 * math.log2(lr / 0.003) ** 2 for lr, mean in means.items()}
        if arm == "looped":
            means["0.008"] = "Infinity"
        best = float(min(means, key=lambda lr: float(means[lr])))
        chosen = {"mean": means, "best": best, "inside": True}
        study["sweep"][arm] = {"grid": grid, **chosen, "metric": "val/loss", "seeds": [*seeds]}
        study["arms"][arm] |= {"lr": best, "lr_status": "rates swept here, optimum inside", "target": None}
    write_json(folder / "study.json", study)
    return folder


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
