"""What of a run's directory a tracking store gets: parameters, tags and thinned metrics. Imports no store."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ouro_lab import alarms, records
from ouro_lab.metrics_log import terms

POINTS = 2000  # per metric
VALUE = 250  # characters of a parameter that every store keeps
NOT_METRICS = ("step", "time")
VIEW = "ouro"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"  # what the UI's own "share view" writes; read by ?viewStateShareKey=

# Facts of a run: name → where it stands, first hit counts; `a.b` is key b of section a.
FACTS = {
    "parameters": ("cost.parameters",),
    "body_parameters": ("cost.body_parameters",),
    "layers": ("backbone.layers",),
    "loops": ("backbone.loops",),
    "width": ("backbone.width",),
    "heads": ("backbone.heads",),
    "vocab": ("backbone.vocab_size", "data.vocab_size"),
    "length": ("data.length",),
    "batch": ("data.batch_size", "data.batch"),
    "steps": ("cost.steps",),
    "tokens": ("cost.tokens",),
    "training_flops": ("cost.training_flops",),
    "precision": ("execution.precision",),
}
BUILT = {"objective": "objective._target_", "optimiser": "optim._target_"}


@dataclass(frozen=True)
class Point:
    """One value of one metric; time in milliseconds since 1970."""

    name: str
    value: float
    time: int
    step: int


class Tracked:
    """A run's directory as a store should show it. Read once: make a new one to see what was written since."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.run: dict[str, Any] = records.read_json(directory / "run.json")
        self.record = records.read_note(directory)
        self.state = records.read_state(directory) or {"state": "unknown"}
        self.final = records.read_final(directory)
        self.study: dict[str, Any] = records.read_json(directory.parent / "study.json") or {}

    @cached_property
    def status(self) -> str:
        """running, interrupted (nobody runs it and it has not ended), done, diverged, failed."""
        state = self.state["state"]
        return "interrupted" if state == "running" and not records.is_running(self.directory) else state

    @property
    def started(self) -> int | None:
        """Of this attempt, in milliseconds since 1970."""
        return round(self.state["began"] * 1000) if "began" in self.state else None

    @property
    def stopped(self) -> int | None:
        return round(self.state["ended"] * 1000) if "ended" in self.state else None

    @property
    def ended(self) -> bool:
        return self.status in records.END_STATES

    def parameters(self) -> dict[str, str]:
        """What is ablated (arm, rate, seed, overrides), then about fifteen facts."""
        found: dict[str, Any] = {name: self.run.get(name) for name in ("arm", "lr", "seed")}
        arm = self.study.get("arms", {}).get(self.run["arm"], {})
        for override in [*arm.get("overrides", []), *self.run.get("overrides", [])]:
            name, _, value = override.lstrip("+~").partition("=")
            found[name] = value
        found |= {name: value for name, value in self._facts().items() if name not in found}
        return {_key(name): _text(value)[:VALUE] for name, value in found.items() if value is not None}

    def tags(self) -> dict[str, str]:
        git = self.record.get("git", {})
        found = {
            "state": self.status,
            "reason": self.state.get("reason") or None,
            "alarms": alarms.summary(alarms.read(self.directory)),
            "phase": self.run.get("phase"),
            "hash": self.run.get("hash"),
            "study_hash": self.study.get("hash"),
            "claim": ", ".join(self.study.get("claim", [])) or None,
            "shape": arm_shape(self.study, self.run["arm"]) or self.record.get("cost", {}).get("shape"),
            "git.commit": git.get("commit"),
            "git.dirty": git.get("dirty"),
            "command": self.run.get("command"),
        }
        return {name: _text(value)[:5000] for name, value in found.items() if value is not None}

    def points(self, after: int) -> tuple[list[Point], int]:
        """Metrics beyond step `after`, and the step up to which they are complete.

        An unfinished run gives what its newest checkpoint covers: nothing behind that can be taken back.
        """
        upto = records.last_step(self.directory / "metrics.jsonl") if self.ended else self.checkpoint
        rows = [row for row in records.read_metrics(self.directory / "metrics.jsonl") if row["step"] <= upto]
        planned = self.record.get("cost", {}).get("steps") or self.state.get("steps")
        if planned is None and not self.ended:  # thinning would depend on when it is called
            return [], after
        chosen = thin(rows, planned or upto, after, self.ended)
        return chosen + self._final_points(), max(upto, after)

    @cached_property
    def checkpoint(self) -> int:
        return records.checkpoint_step(self.directory)

    def _final_points(self) -> list[Point]:
        if self.final is None or not self.ended:
            return []
        values = {**self.final["metrics"], "final/seconds": self.final["seconds"]}
        values |= {f"final/{name}": self.final[name] for name in ("tokens", "flops")}
        moment = self.final.get("time") or (self.directory / "final.json").stat().st_mtime
        when, step = round(moment * 1000), self.final["steps"]
        return [Point(_key(name), float(value), when, step) for name, value in values.items() if value is not None]

    def _facts(self) -> dict[str, Any]:
        config = self._config()
        found = {name: self._first(places, config) for name, places in FACTS.items()}
        for name, place in BUILT.items():
            target = self._first((place,), config)
            found[name] = str(target).rpartition(".")[2] if target else None
        commit = self.record.get("git", {}).get("commit")
        return found | {"commit": commit[:12] if commit else None}

    def _config(self) -> dict[str, Any]:
        from omegaconf import OmegaConf

        path = self.directory / "config.yaml"
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True) if path.is_file() else {}
        return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}

    def _first(self, places: Iterable[str], config: Mapping[str, Any]) -> Any:
        """record.json, which knows defaults too, before config.yaml, which states choices."""
        for place in places:
            section, key = place.split(".")
            for source in (self.record, config):
                content = source.get(section)
                if isinstance(content, Mapping) and content.get(key) is not None:
                    return content[key]
        return None


def thin(rows: list[dict[str, Any]], planned: int, after: int, ended: bool) -> list[Point]:
    """At most `POINTS` per metric: the first of every stride of steps, and the last when the run has ended.

    The stride depends only on the planned steps, so that pieces sent while a run grows are what is sent at once.
    """
    stride = -(-max(planned, 1) // (POINTS - 2))
    bucket: dict[str, int] = {}
    last: dict[str, Point] = {}
    chosen: list[Point] = []
    for row in rows:
        when, step = round(row["time"] * 1000), row["step"]
        for name, value in row.items():
            if name in NOT_METRICS or not isinstance(value, (int, float)):
                continue
            point = Point(_key(name), float(value), when, step)
            number = min(step // stride, POINTS - 2)
            if bucket.get(name) == number:
                last[name] = point
                continue
            bucket[name] = number
            last.pop(name, None)
            if step > after:
                chosen.append(point)
    # A last point that its stride left out was never sent, whatever its step.
    return chosen + list(last.values()) if ended else chosen


def view_of(study: Mapping[str, Any]) -> dict[str, str]:
    """An experiment's tags: description, and the columns of its table. MLflow's default shows no metric at all."""
    contrasts = sorted(study.get("contrasts", {}).values(), key=lambda contrast: not contrast.get("primary"))
    finals = [f"final/{term}" for contrast in contrasts for term in terms(contrast["metric"])] + ["final/loss"]
    columns = [f"metrics.`{name}`" for name in dict.fromkeys(finals)]
    columns += [f"params.`{name}`" for name in ("arm", "lr", "seed", "parameters", "training_flops", "tokens")]
    columns += [f"tags.`{name}`" for name in ("shape", "state")]
    facets = {"searchFilter": "", "startTime": "ALL", "lifecycleFilter": "Active", "datasetsFilter": []}
    order = {"orderByKey": "params.`arm`", "orderByAsc": True, "modelVersionFilter": "All Runs"}
    note = "\n\n".join(str(study[key]) for key in ("question", "hypothesis", "command") if study.get(key))
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": note,
        VIEW_TAG: json.dumps({**facets, **order, "selectedColumns": columns}),
    }


def arm_shape(study: Mapping[str, Any], arm: str) -> str | None:
    return study.get("arms", {}).get(arm, {}).get("shape")


def _key(name: str) -> str:
    """Letters, digits and `_-. :/` are what every store takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:VALUE]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value).lower() if isinstance(value, bool) else str(value)
