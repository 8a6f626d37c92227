"""The verbs of a study: run, list, status, evidence."""

import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ouro_lab import records, tracking
from ouro_lab.assembly import Parts
from ouro_lab.check import check, match_table, register, save
from ouro_lab.compute.hardware import training_rate
from ouro_lab.config import EXPERIMENTS, ROOT, ConfigError, build, plain, study_names
from ouro_lab.progress import StudyProgress
from ouro_lab.study import RESULTS, Run, Study, smoke_overrides
from ouro_lab.training.callbacks import clock
from ouro_lab.training.execution import settle

PUSH_SECONDS = 30.0


def run(name: str, overrides: Sequence[str] = ()) -> int:
    """Check, prepare, execute what is left, report; always report, also after failures."""
    study = _study(name, overrides)
    with records.run_lock(records.runs_root() / name) as free:
        if not free:
            raise ConfigError(f"study {name}: another process is running it; make status NAME={name}")
        parts = check(study)
        launcher = build(study.config.launcher, "launcher")
        study.expand()  # both may refuse, and nothing is written yet
        print(f"{name}: {study.definition.question}\n\n{match_table(study, parts)}\n", flush=True)
        store = prepare(study)
        register(study)
        save(study, parts)
        watch = Watch(study, parts, store)
        try:
            launcher.execute(study.todo, study.expand, watch)
        finally:
            watch.end()
            save(study, parts)
        _report(study, store)
    failed = [run.id for run in study.expand() if run.state == "failed"]
    for run_id in failed:
        reason = (records.read_state(records.runs_root() / name / run_id) or {}).get("reason", "")
        print(f"failed: {run_id}: {reason}")
    return 1 if failed else 0


def prepare(study: Study) -> Any:
    """Data caches and the tracking store, made once before any run needs them."""
    done = []
    for config in study.arm_configs.values():
        if config.data not in done:
            done.append(config.data)
            build(config.data, "data").prepare_data()
    store = build(study.config.tracking, "tracking")
    store.prepare()
    return store


class Watch:
    """Shows how far the study is and sends rows to the tracking store while runs make them."""

    def __init__(self, study: Study, parts: dict[str, Parts], store: Any) -> None:
        self.study, self.parts, self.store = study, parts, store
        self.progress = StudyProgress(study, {name: part.cost["training_flops"] for name, part in parts.items()})
        self.pushed_at = 0.0
        self.pushed: set[str] = set()

    def __call__(self, active: list[Run]) -> None:
        self.progress.show(active)
        if time.monotonic() - self.pushed_at >= PUSH_SECONDS:
            self.pushed_at = time.monotonic()
            save(self.study, self.parts)  # rates and runs come to light as sweeps finish; `make report` reads them
            self._push(active)

    def end(self) -> None:
        self.progress.end()
        self._push([])

    def _push(self, active: list[Run]) -> None:
        for run in self.study.expand():
            final = run.finished and run.id not in self.pushed
            if not (final or run in active):
                continue
            if not tracking.push(run.directory, self.store):
                return  # the store is down: each further try would cost its time-out
            if final:
                self.pushed.add(run.id)


def list_studies() -> int:
    """Every study: question, claim, estimated core-minutes here, state."""
    for name in study_names():
        study = Study(name)
        minutes = "?"
        try:
            minutes = f"{_core_minutes(study, check(study)):.0f} core-minutes"
            counts = Counter(run.state for run in study.expand())
            state = ", ".join(f"{count} {what}" for what, count in counts.items())
        except (ConfigError, ValueError) as error:  # what it would cost is known also where its rates are not
            state = str(error)
        evidence = " · evidence committed" if (RESULTS / name / "evidence.json").exists() else ""
        claim = ", ".join(study.definition.claim) or "none"
        print(f"{name}\n  {study.definition.question}\n  claim {claim} · {minutes} here · {state}{evidence}\n")
    return 0


def status(name: str, overrides: Sequence[str] = ()) -> int:
    """done / running / diverged / failed / to do / stale, and the time left."""
    study = _study(name, overrides)
    parts = check(study)
    runs = study.expand()
    counts = Counter(run.state for run in runs)
    for run in runs:
        step = records.last_step(run.directory / "metrics.jsonl")
        reason = (records.read_state(run.directory) or {}).get("reason") or ""
        print(f"  {run.state:9s} {run.id:48s} step {step}/{parts[run.arm].cost['steps']}  {reason}")
    for stale in study.stale():
        print(f"  stale     {stale}")
    waiting = [run for run in runs if run.state in ("to do", "running")]
    left = _runs_seconds(waiting, parts, _rate(study))
    room = build(study.config.launcher, "launcher").room(study.config.trainer.get("accelerator", "cpu"), 1)
    summary = ", ".join(f"{counts[state]} {state}" for state in ("done", "running", "diverged", "failed", "to do"))
    print(f"{name}: {summary}, {len(study.stale())} stale; about {clock(left / room)} left here")
    return 0


def evidence(name: str) -> int:
    """Exports a finished study to experiments/results/; the tree must be clean, so that the commit says what ran."""
    from analysis import report, runs

    if records.smoke():
        raise ConfigError(f"evidence {name}: SMOKE=1 is set; a shortened study is no evidence")
    dirty = _uncommitted()
    if dirty.strip():
        raise ConfigError(f"evidence {name}: the tree is not clean ({dirty.splitlines()[0].strip()}); commit first")
    study = Study(name)
    unfinished = [run.id for run in study.expand() if not run.finished]
    if unfinished or not study.expand():
        raise ConfigError(f"evidence {name}: {len(unfinished)} runs unfinished; make experiment NAME={name}")
    content = save(study, check(study))
    folder = RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    result = runs.load(name)
    runs.export(result, folder)
    for file in ("study.json", "study.yaml"):
        shutil.copyfile(records.runs_root() / name / file, folder / file)
    shutil.copyfile(EXPERIMENTS / f"{name}.yaml", folder / "experiment.yaml")
    records.write_json(folder / "evidence.json", _provenance(study, content))
    report.write(result, folder, formats=("svg",))
    print(f"{name}: evidence in {folder.relative_to(ROOT)}; commit it")
    return 0


def _study(name: str, overrides: Sequence[str]) -> Study:
    return Study(name, [*overrides, *(smoke_overrides(name) if records.smoke() else [])])


def _uncommitted() -> str:
    command = ["git", "status", "--porcelain"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _provenance(study: Study, content: dict[str, Any]) -> dict[str, Any]:
    notes = [records.read_note(run.directory) for run in study.expand()]
    commits = sorted({note["git"]["commit"] for note in notes if note.get("git")})
    dirty = any(note.get("git", {}).get("dirty") for note in notes)
    ran = {"command": content["command"], "hash": study.hash, "run_commits": commits, "run_trees_dirty": dirty}
    return records.provenance() | ran


def _report(study: Study, store: Any) -> None:
    from analysis import report, runs

    result = runs.load(study.name)
    folder = records.runs_root() / study.name / "report"
    page = report.write(result, folder)
    report.print_summary(result)
    print(f"report: {page}")
    tracking.push_report(study.name, folder, store)


def _rate(study: Study) -> float:
    """FLOP/s of one core here in the precision that the study would train in."""
    return training_rate(settle(plain(study.config.trainer), 0.0, {}).precision)


def _core_minutes(study: Study, parts: dict[str, Parts]) -> float:
    seeds = len(study.definition.seeds)
    if study.definition.lr is not None and study.definition.lr.grid:
        seeds += len(study.definition.lr.grid) * len(study.definition.lr.seeds)
    return sum(part.cost["training_flops"] for part in parts.values()) * seeds / _rate(study) / 60


def _runs_seconds(runs: list[Run], parts: dict[str, Parts], rate: float) -> float:
    """Core-seconds, from the runs' own measured step time where they have one."""
    total = 0.0
    for run in runs:
        cost = parts[run.arm].cost
        rows = [row for row in records.read_metrics(run.directory / "metrics.jsonl") if "perf/step_seconds" in row]
        step = rows[-1]["perf/step_seconds"] if rows else cost["training_flops"] / cost["steps"] / rate
        total += step * (cost["steps"] - records.last_step(run.directory / "metrics.jsonl"))
    return total


__all__ = ["evidence", "list_studies", "run", "status", "study_names"]
