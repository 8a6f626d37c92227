"""Committed evidence, read back and judged again: a verdict counts only if its own runs still give it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis import report, runs
from analysis.runs import RESULTS, StudyResult
from analysis.verdict import Verdict, judge
from ouro_lab import records
from ouro_lab.config import EXPERIMENTS
from ouro_lab.study import Study

RENDERED = ("sentence", "notes", "how")  # words made of the numbers beside them; rewording them changes no verdict
CLOSE = 1e-9  # relative: the last bits of a t quantile are the machine's


class MismatchError(ValueError):
    """One line: the study, and where verdict.json and its runs part."""


@dataclass(frozen=True)
class Stated:
    """What a study's file says: its hash, the claims it tests, and by contrast those that it alone speaks for."""

    hash: str
    claim: tuple[str, ...]
    contrasts: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Evidence:
    """A folder of `experiments/results/`. today: what the study's file states now, None where it is gone."""

    folder: Path
    result: StudyResult
    verdicts: dict[str, Verdict]
    calibration: dict[str, Any] | None
    today: Stated | None

    @property
    def outdated(self) -> bool:
        return self.today is None or self.today.hash != self.result.study["hash"]

    @property
    def speakers(self) -> dict[str, list[str]]:
        """Claim → the contrasts that speak for it: those that name it, else the primary one.

        As the study's file says today where it has the same contrasts, since claims are outside of its hash and
        a row under the wrong claim is put right without a run; else as the evidence says.
        """
        primary = [name for name, verdict in self.verdicts.items() if verdict.primary]
        said = self.today if self.today and set(self.today.contrasts) == set(self.verdicts) else self._said
        return {
            claim: [name for name, claims in said.contrasts.items() if claim in claims] or primary
            for claim in said.claim
        }

    @property
    def _said(self) -> Stated:
        study = self.result.study
        contrasts = {name: tuple(spec.get("claim") or ()) for name, spec in study["contrasts"].items()}
        return Stated(study["hash"], tuple(study.get("claim") or ()), contrasts)


def read(folder: Path, today: Stated | None) -> Evidence:
    """One study's evidence, judged again.

    Raises:
        MismatchError: verdict.json, or the hash in evidence.json, is not what the runs and study.json give.
    """
    result = runs.from_evidence(folder)
    verdicts = judge(result)
    found, said = report.facts(result, verdicts), records.read_json(folder / "verdict.json") or {}
    stamp = (records.read_json(folder / "evidence.json") or {}).get("hash")
    if stamp != found["hash"]:
        raise MismatchError(f"study {folder.name}: evidence.json has hash {stamp}, study.json {found['hash']}")
    if set(said.get("contrasts", {})) != set(found["contrasts"]):
        raise MismatchError(f"study {folder.name}: verdict.json and study.json have different contrasts")
    if part := difference(said, found):
        raise MismatchError(f"study {folder.name}: {part}; was verdict.json, or were the runs, changed by hand?")
    return Evidence(folder, result, verdicts, found["calibration"], today)


def read_all(results: Path = RESULTS, stated: Mapping[str, Stated] | None = None) -> list[Evidence]:
    """Every study with evidence, by name. stated: instead of the files in experiments/."""
    folders = sorted(path.parent for path in results.glob("*/verdict.json"))
    return [read(folder, state(folder.name) if stated is None else stated.get(folder.name)) for folder in folders]


def state(name: str) -> Stated | None:
    """Of the study's file as it is now, which takes a composition of every arm."""
    if not (EXPERIMENTS / f"{name}.yaml").is_file():
        return None
    study = Study(name)
    contrasts = {key: contrast.claim for key, contrast in study.definition.contrasts.items()}
    return Stated(study.hash, study.definition.claim, contrasts)


def difference(said: Any, found: Any, path: str = "") -> str | None:
    """The first place where what is said is not what is found; what newer code finds in addition is no difference."""
    if isinstance(said, Mapping) and isinstance(found, Mapping):
        keys = [key for key in said if key not in RENDERED]
        parts = (difference(said[key], found.get(key), f"{path}.{key}".lstrip(".")) for key in keys)
        return next((part for part in parts if part), None)
    if isinstance(said, list) and isinstance(found, list) and len(said) == len(found):
        pairs = enumerate(zip(said, found, strict=True))
        return next((part for i, pair in pairs if (part := difference(*pair, f"{path}[{i}]"))), None)
    return None if _same(said, found) else f"verdict.json says {path} = {said}, its runs say {found}"


def _same(said: Any, found: Any) -> bool:
    numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in (said, found))
    return math.isclose(said, found, rel_tol=CLOSE, abs_tol=1e-12) if numbers else said == found
