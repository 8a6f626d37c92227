"""`make list`: a row a study. Composing them all takes a minute, so what nothing has changed is remembered."""

import hashlib
import multiprocessing
import os
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from ouro_lab import estimate, measured, records
from ouro_lab.compute.hardware import cpu_rates
from ouro_lab.config import EXPERIMENTS, ROOT, ConfigError, study_names
from ouro_lab.launch import cores
from ouro_lab.study import RESULTS, Study

FILE = "list.json"


def list_studies() -> int:
    """Every study: question, claim, estimated core-minutes here, state; each row as soon as it is known."""
    for row in rows(study_names()):
        print(row, flush=True)
    return 0


def rows(names: list[str]) -> Iterator[str]:
    """In this order, those that are not remembered by as many processes as there are cores."""
    common = _common()
    keys = {name: _key(name, common) for name in names}
    known = measured.read(FILE)
    new = [name for name in names if keys[name] not in known]
    found: dict[str, str] = {}
    # Forked processes would inherit torch's threads, of which only the caller's survives.
    processes = min(cores(), len(new) // 8)  # each imports torch first, which takes as long as some rows
    if processes > 1:
        estimate.measure()  # here, where no other process of ours disturbs it
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) if processes > 1 else None
    made = iter(pool.map(row, new) if pool else map(row, new))
    try:
        for name in names:
            text, lasts = (known[keys[name]], True) if keys[name] in known else next(made)
            if lasts:
                found[keys[name]] = text
            yield text
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
        measured.write(FILE, found)


def row(name: str) -> tuple[str, bool]:
    """The study's lines, composed and checked now; whether they hold until a file changes, as no run is alive."""
    from ouro_lab.check import check  # imports Lightning, which remembered rows do without

    study = Study(name)
    minutes = "?"
    counts: Counter[str] = Counter()
    try:
        minutes = f"{estimate.core_minutes(study, check(study)):.0f} core-minutes"
        counts = Counter(run.state for run in study.expand())
        state = ", ".join(f"{count} {what}" for what, count in counts.items())
    except (ConfigError, ValueError) as error:  # what it would cost is known also where its rates are not
        state = str(error)
    claim = ", ".join(study.definition.claim) or "none"
    text = f"{name}\n  {study.definition.question}\n  claim {claim} · {minutes} here · {state}{_evidence(study)}\n"
    return text, not counts["running"]


def _evidence(study: Study) -> str:
    """Whether evidence is committed, and whether it is of the study as its file says today."""
    stamp = records.read_json(RESULTS / study.name / "evidence.json")
    if stamp is None:
        return ""
    same = stamp["hash"] == study.hash
    return " · evidence committed" if same else " · evidence committed, of an earlier version of the study"


def _common() -> bytes:
    """Digest of what every row depends on: code, choices, all studies and evidence, trunks, this machine and user."""
    folders = [(ROOT / "ouro_lab", "*.py"), (ROOT / "conf", "*.yaml"), (EXPERIMENTS, "*.yaml"), (EXPERIMENTS, "*.json")]
    digest = hashlib.sha256()
    for folder, pattern in [*folders, (ROOT / "trunks", "*")]:
        for file in sorted(folder.rglob(pattern)):
            digest.update(_as_of(file))
    environment = {name: value for name, value in os.environ.items() if name.startswith(("OURO_", "CKPT", "SMOKE"))}
    digest.update(repr((sorted(environment.items()), records.runs_root(), sorted(cpu_rates().items()))).encode())
    return digest.digest()


def _key(name: str, common: bytes) -> str:
    """Also of the runs here that the row counts, or that it took rates or weights from."""
    digest = hashlib.sha256(common)
    sources = re.findall(r"from[=:]\W*(?:study[=:]\W*)?(\w+)", (EXPERIMENTS / f"{name}.yaml").read_text())
    for study in sorted({name, *sources}):
        for file in sorted((records.runs_root() / study).glob("**/*.json")):
            digest.update(_as_of(file))
    return f"{name} {digest.hexdigest()[:16]}"


def _as_of(file: Path) -> bytes:
    """Name, size and time of its last change in ns; nothing of one that has just been replaced."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return b""
    return f"{file} {found.st_size} {found.st_mtime_ns}\n".encode()
