"""The verbs of a study: run, status, match, evidence."""

import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ouro_lab import checkpoint, cut, estimate, records, stages, tracking
from ouro_lab.assembly import Parts, looped_of
from ouro_lab.check import check, check_starts, command, match_table, register, save
from ouro_lab.compute.solver import Arm, solve_all
from ouro_lab.config import EXPERIMENTS, ROOT, ConfigError, build, first_line, plain
from ouro_lab.progress import StudyProgress, how_far
from ouro_lab.study import RESULTS, Run, Study, study_here
from ouro_lab.training import execution
from ouro_lab.training.callbacks import clock

PUSH_SECONDS = 30.0


def run(name: str, overrides: Sequence[str] = (), budget: str | None = None) -> int:
    """Check, prepare, execute what is left, report; always report, also after failures.

    budget: minutes of this machine that the study is cut down to (`ouro_lab.cut` has the rule).
    """
    whole, minutes = study_here(name, overrides), cut.read_minutes(budget) if budget else None
    with records.run_lock(records.runs_root() / name) as free:
        if not free:
            raise ConfigError(f"study {name}: another process is running it; make status NAME={name}")
        study, parts = _checked(whole, minutes)
        store = prepare(study)
        if minutes:
            cut.remember(whole, study, minutes)
        register(study)
        if _execute(study, parts, store):
            _report(study, store)
    failed = [run.id for run in study.expand() if run.state == "failed"]
    for run_id in failed:
        reason = (records.read_state(records.runs_root() / name / run_id) or {}).get("reason", "")
        print(f"failed: {run_id}: {reason}")
    blocked = stages.blocked(study)
    for run in blocked:
        print(f"blocked: {run.id}: a run that it starts from is not done")
    return 1 if failed or blocked else 0


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


def status(name: str, overrides: Sequence[str] = ()) -> int:
    """done / running / diverged / failed / to do / stale, and the time left."""
    study = study_here(name, overrides)
    parts = check(study)
    runs = study.expand()
    counts = Counter(run.state for run in runs)
    blocked = {run.id for run in stages.blocked(study)}
    for run in runs:
        step, steps = records.last_step(run.directory / "metrics.jsonl"), parts[run.arm].cost["steps"]
        reason = (records.read_state(run.directory) or {}).get("reason") or ""
        if run.start is not None and run.start.source is not None and not run.start.ready and not run.finished:
            source = run.start.source
            reason = f"{'blocked by' if run.id in blocked else 'waits for'} {source.study}/{source.id}"
        print(f"  {run.state:9s} {run.id:48s} step {how_far(run, step, steps)}  {reason}")
    for stale in study.stale():
        print(f"  stale     {stale}")
    waiting = [run for run in runs if run.state in ("to do", "running")]
    left = estimate.seconds_left(study, waiting, parts)
    room = estimate.slots(study)
    summary = ", ".join(f"{counts[state]} {state}" for state in ("done", "running", "diverged", "failed", "to do"))
    print(f"{name}: {summary}, {len(study.stale())} stale; about {clock(left / room)} left here")
    return 0


def match(name: str, overrides: Sequence[str] = (), unique: str | None = None, timed: str | None = None) -> int:
    """Arms that hold something equal to the study's first looped arm, each as a line for its `arms` block.

    unique: tokens of the training set, where they are to be repeated. timed: rounds in which steps are measured, for
    equal wall clock.
    """
    study = study_here(name, overrides)
    tokens = int(float(unique)) if unique else None
    rounds = int(timed) if timed and timed.isdigit() else 0
    if timed is not None and rounds < 1:
        raise ConfigError(f"match: --timed = {timed}: must be a number of rounds ≥ 1")
    for arm, parts in check(study).items():
        looped = looped_of(study.arm_configs[arm], parts, tokens)
        if looped is not None and rounds:
            looped = replace(looped, timed=_clock(study, arm, parts, rounds))
        if looped is not None:
            print(f"# {name}: {arm} {looped.config.shape}, {looped.steps:,} steps, {looped.supervised} supervised")
            print("\n".join(f"{'' if isinstance(found, Arm) else '# '}{found}" for found in solve_all(looped)))
            return 0
    raise ConfigError(f"match {name}: has no arm with more than one loop")


def _clock(study: Study, arm: str, parts: Parts, rounds: int) -> Callable[[Any, Any], float]:
    from ouro_lab.bench.clock import TimedStep

    trainer, data = plain(study.arm_configs[arm].trainer), parts.data
    if trainer.get("accelerator", "cpu") != "cpu":
        raise ConfigError(f"match: --timed measures a CPU; trainer.accelerator = {trainer['accelerator']} of {arm}")
    kept = execution.kept_precision(trainer, execution.listed(records.runs_root() / study.name))
    mixed = "bf16" in execution.settle(trainer, 0.0, {}, kept).precision
    batch = data.batch_size // int(trainer.get("accumulate", 1))
    step = TimedStep(batch, data.length, data.vocab_size, parts.objective, mixed)
    return lambda above, below: step.ratio(above, below, rounds)


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


def _checked(study: Study, minutes: float | None) -> tuple[Study, dict[str, Parts]]:
    """The study, cut down where that is asked for, and its parts; refuses what cannot run, and writes nothing."""
    parts = check(study)
    build(study.config.launcher, "launcher")
    check_starts(study, parts)
    lines = execution.lines(plain(study.config.trainer), (run.directory for run in study.expand()))
    if minutes:
        study, cuts = _within(study, parts, minutes)
        lines += cuts
        parts = {arm: parts[arm] for arm in study.definition.arms}
    print(f"{study.name}: {study.definition.question}\n\n{match_table(study, parts)}\n")
    print(
        "".join(f"{line}\n" for line in [*checkpoint.lines(study, parts), *lines, *_warnings(study, parts)]), flush=True
    )
    return study, parts


def _execute(study: Study, parts: dict[str, Parts], store: Any) -> bool:
    """Whether there is anything to report; a launcher that only submits may have nothing yet."""
    save(study, parts)
    watch = Watch(study, parts, store)
    try:
        return build(study.config.launcher, "launcher").execute(study.todo, study.expand, watch)
    finally:
        watch.end()
        save(study, parts)


def _within(study: Study, parts: dict[str, Parts], minutes: float) -> tuple[Study, list[str]]:
    """The study cut down to these minutes, and what to say of it."""
    from analysis import power

    before = power.plan(study, parts)
    overrides, how = cut.within(study, before.price, minutes)
    small = Study(study.name, [*study.overrides, *overrides]) if overrides else study
    lines = [f"BUDGET={minutes:g}: {how}"]
    if overrides:
        lines += [f"  {cut.difference(study.definition, small.definition)}", f"  {command(small)}"]
        lines += [f"  {line}" for line in power.lost(before, power.plan(small, parts))]
    return small, lines


def _warnings(study: Study, parts: dict[str, Parts]) -> list[str]:
    """What a pilot says that the study cannot decide; a pilot that cannot be read stops nothing."""
    from analysis import power

    try:
        return power.warnings(power.plan(study, parts))
    except (KeyError, OSError, ValueError) as error:
        return [f"warning: no power figures, the pilot cannot be read ({first_line(error)})"]


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


__all__ = ["evidence", "match", "run", "status"]
