"""A study: a question, arms, contrasts, seeds and a learning-rate block, and the runs that they make.

`expand()` alone makes arms × learning rates × seeds into runs. Everything else (what is left to do, what is stale, the
report) follows from that list and from what lies in the run directories.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from ouro_lab import records
from ouro_lab.config import ROOT, ConfigError, compose_config, nearest, plain, plain_unresolved
from ouro_lab.definition import Arm, parse
from ouro_lab.rates import Rate, Sweep
from ouro_lab.starts import CKPT, Start, digest, find

RESULTS = ROOT / "experiments" / "results"
ATTEMPTS = 3  # a failed run is retried at most twice

# What says where and how a run executes, not what it computes.
OUTSIDE_HASH = ("launcher", "tracking", "study")
# What a study says of itself, how it is drawn and what it was planned with; rewording changes no verdict.
WORDS = ("question", "hypothesis", "claim", "scope", "figures", "smoke", "pilot")
EVALUATION = ("seed", "val_size", "test_size", "val_tokens", "test_tokens", "eval_batch_size")
OUTSIDE_HASH_TRAINER = ("devices", "num_nodes", "strategy")


@dataclass(frozen=True)
class Run:
    """One arm × learning rate × seed."""

    study: str
    arm: str
    lr: float
    seed: int
    phase: str  # main, or lr for a run of the learning-rate block
    overrides: tuple[str, ...]
    config: dict[str, Any]
    start: Start | None = None  # whose weights it begins with; None: its own initial ones

    @cached_property
    def hash(self) -> str:
        return config_hash(self.config, self.start)

    @property
    def id(self) -> str:
        return f"{self.arm}-{self.lr:g}-{self.seed}-{self.hash}"

    @property
    def directory(self) -> Path:
        return records.runs_root() / self.study / self.id

    @property
    def command(self) -> list[str]:
        """Arguments after `python -m ouro_lab.run`."""
        return [f"study={self.study}", f"arm={self.arm}", f"lr={self.lr!r}", f"seed={self.seed}", *self.overrides]

    @property
    def state(self) -> str:
        """done, diverged, failed (no attempt left), running, or to do."""
        state = records.read_state(self.directory)
        if state is None:
            return "to do"
        if state["state"] in ("done", "diverged"):
            return state["state"]
        if records.is_running(self.directory):
            return "running"
        return "failed" if state["state"] == "failed" and state["attempts"] >= ATTEMPTS else "to do"

    @property
    def finished(self) -> bool:
        return self.state in ("done", "diverged", "failed")

    def identity(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("id", "study", "arm", "lr", "seed", "hash", "phase")}


class Study:
    """One file of experiments/, with overrides.

    Raises:
        ConfigError: unknown file or key, bad value, or an override of a key that an arm sets.
    """

    def __init__(self, name: str, overrides: Sequence[str] = ()) -> None:
        self.name = name
        self.overrides = tuple(overrides)
        self._made: dict[tuple[str, float, int, str], Run] = {}
        self._of_runs: dict[str, DictConfig] = {}  # with rate and seed of the run last asked for: not for threads
        self.config = compose_config(name, overrides)
        if not isinstance(self.config.get("study"), DictConfig):
            raise ConfigError(f"study {name}: experiments/{name}.yaml has no `study` block")
        self.definition = parse(name, _block(self.config.study))
        self._refuse_arm_keys()

    @cached_property
    def arm_configs(self) -> dict[str, DictConfig]:
        """Each arm's composed config, learning rate and seed not yet set."""
        return {name: self._compose(name, arm) for name, arm in self.definition.arms.items()}

    @cached_property
    def hash(self) -> str:
        """Of all that the verdict depends on: arms, seeds, rates, contrasts, rules, budgets, the weights that runs
        start from; no words, no results.
        """
        arms = {name: config_of(cfg) for name, cfg in self.arm_configs.items()}
        block = _less_words(plain(self.config.study))
        if block.get("contrasts"):
            block["contrasts"] = {name: _less_words(contrast) for name, contrast in block["contrasts"].items()}
        starts = {arm: self._starts(arm) for arm, config in arms.items() if config["init_from"] is not None}
        return _digest({"arms": arms, "study": block} | ({"starts": starts} if starts else {}))

    def expand(self) -> list[Run]:
        """All runs that the study yields today; those of an arm's seeds once its learning rate is known."""
        runs: dict[str, Run] = {}
        for arm in self.definition.arms:
            block = self.definition.lr
            if block is not None and self.sweeps(arm):
                for lr in self.sweep(arm).grid:
                    for seed in block.seeds:
                        run = self.run(arm, lr, seed, "lr")
                        runs.setdefault(run.id, run)
            rate = self.rate(arm)
            if rate is not None:
                main = [self.run(arm, rate.lr, seed, "main") for seed in self.definition.seeds]
                runs |= {run.id: run for run in main}
        return list(runs.values())

    def todo(self) -> list[Run]:
        """What may run now: neither finished nor running, and what it starts from is done."""
        return [run for run in self.expand() if run.state == "to do" and (run.start is None or run.start.ready)]

    def run(self, arm: str, lr: float, seed: int, phase: str = "main") -> Run:
        if arm not in self.definition.arms:
            raise ConfigError(f"arm = {arm}: not an arm of {self.name}; {nearest(arm, self.definition.arms)}")
        key = (arm, lr, seed, phase)
        if key not in self._made:  # asked for twice a second while the study runs
            if arm not in self._of_runs:
                self._of_runs[arm] = self.arm_configs[arm].copy()
            config = self._of_runs[arm]
            if self.trains(arm):
                OmegaConf.update(config, "optim.lr", lr)
            OmegaConf.update(config, "seed", seed)
            found = config_of(config)
            start = find(found["init_from"], seed, self)
            self._made[key] = Run(self.name, arm, lr, seed, phase, self.overrides, found, start)
        return self._made[key]

    def trains(self, arm: str) -> bool:
        """Whether its runs train anything; else they evaluate alone, and there is no learning rate."""
        return self.arm_configs[arm].do != "evaluate"

    def sweeps(self, arm: str) -> bool:
        """Whether this study chooses its learning rate."""
        return self.definition.lr is not None and bool(self.definition.lr.grid) and self.trains(arm)

    def sweep(self, arm: str) -> Sweep:
        """The learning-rate sweep of an arm as far as its runs have come."""
        if self.definition.lr is None:
            raise ConfigError(f"study {self.name}: has no study.lr to sweep")
        return self.definition.lr.sweep(lambda lr, seed: self.run(arm, lr, seed, "lr").directory)

    def rate(self, arm: str) -> Rate | None:
        """The learning rate of an arm's seeds; None while its sweep is unfinished."""
        if not self.trains(arm):
            return Rate(0.0, True, "nothing is trained")
        block = self.definition.lr
        if block is None:
            return Rate(float(self.arm_configs[arm].optim.lr), False, "learning rate set, not swept")
        if block.grid:
            return self.sweep(arm).rate()
        return block.borrow(arm, self.rate_hash(arm))

    def rate_hash(self, arm: str) -> str:
        """Of what a learning rate was chosen for: the arm's config less rate, seed and what evaluates the result."""
        config = json.loads(json.dumps(config_of(self.arm_configs[arm])))
        config.pop("seed")
        config.pop("evaluation", None)
        config["optim"].pop("lr")
        config["data"] = {k: v for k, v in config["data"].items() if k not in EVALUATION}
        return _digest(config)

    def stale(self) -> list[str]:
        """Run directories that the study does not yield today."""
        folder = records.runs_root() / self.name
        known = {run.id for run in self.expand()}
        found = [path.parent.name for path in folder.glob("*/run.json")] if folder.is_dir() else []
        return sorted(set(found) - known)

    def _compose(self, name: str, arm: Arm) -> DictConfig:
        cfg = compose_config(self.name, [*arm.overrides, *self.overrides])
        given = [key for key, value in cfg.budget.items() if value is not None]
        if len(given) != 1 and cfg.do != "evaluate":
            raise ConfigError(f"{self.name}: {name}: budget: give exactly one of steps, tokens, flops (given: {given})")
        with open_dict(cfg):
            del cfg["study"]  # most of it, and no part of a run: each would copy and resolve it
        return cfg

    def _starts(self, arm: str) -> list[str]:
        """What the arm's seeds start from; their rates do not matter to it.

        A checkpoint that the environment names is no part of the study, which can be told without it; its weights are
        in each run's hash.
        """
        if self.arm_configs[arm].init_from == CKPT:
            return [CKPT]
        runs = [self.run(arm, 1.0, seed) for seed in self.definition.seeds]
        return [run.start.identity for run in runs if run.start is not None]

    def _refuse_arm_keys(self) -> None:
        for override in self.overrides:
            key = override.lstrip("+~").split("=")[0]
            if key == "optim.lr" and self.definition.lr is not None:
                raise ConfigError(f"override {override}: the rate is set by study.lr; override that")
            for name, arm in self.definition.arms.items():
                for set_by_arm in arm.overrides:
                    theirs = set_by_arm.lstrip("+~").split("=")[0]
                    if key in (theirs, f"{theirs}._target_") or theirs.startswith(f"{key}."):
                        raise ConfigError(f"override {override}: {theirs} is set by arm {name}; change the arm instead")


def study_here(name: str, overrides: Sequence[str] = ()) -> Study:
    """The study as the verbs take it: SMOKE=1 adds its own overrides."""
    return Study(name, [*overrides, *(smoke_overrides(name) if records.smoke() else [])])


def smoke_overrides(name: str) -> list[str]:
    """What SMOKE=1 adds to a study's overrides: those that its file names, two seeds, and no rates of another study."""
    study = Study(name).definition
    found = list(study.smoke)
    if study.lr is not None:
        found.append("study.lr=null" if study.lr.source else "study.lr.extend=0")
    enough = 2 * study.calibration["size"] if study.calibration else 2
    if len(study.seeds) > enough:
        found.append(f"study.seeds={list(study.seeds[:enough])}".replace(" ", ""))
    return found


def config_of(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config of a run, as plain containers, without the study's own block."""
    return {key: value for key, value in plain(cfg).items() if key != "study"}


def config_hash(config: dict[str, Any], start: Start | None = None) -> str:
    """Of what a run computes. start: its weights count by what they are, not by where they lie."""
    kept = {key: value for key, value in config.items() if key not in OUTSIDE_HASH}
    kept["trainer"] = {key: value for key, value in kept["trainer"].items() if key not in OUTSIDE_HASH_TRAINER}
    if start is not None:
        kept["init_from"] = start.identity
    files = _own_files(config.get("data"))
    return _digest(kept | ({"files": files} if files else {}))


def _own_files(node: Any) -> list[str]:
    """Digests of the files that the data's `path`s name, so that a changed file makes new runs."""
    if isinstance(node, list):
        return [found for item in node for found in _own_files(item)]
    if not isinstance(node, dict):
        return []
    path = node.get("path")
    pattern = Path(path).expanduser() if isinstance(path, str) and path else None
    files = Path(pattern.anchor or ".").glob(str(pattern.relative_to(pattern.anchor))) if pattern else ()
    inner = [found for value in node.values() for found in _own_files(value)]
    return [digest(file) for file in sorted(files) if file.is_file()] + inner


def _block(node: DictConfig) -> dict[str, Any]:
    """The study's own block. What an arm interpolates, as ${seed}, is a run's affair and stays as it is written."""
    block, written = plain(node), plain_unresolved(node)
    for name, arm in (block.get("arms") or {}).items():
        as_written = written["arms"][name]
        if isinstance(arm, list):
            block["arms"][name] = as_written
        elif isinstance(arm, dict) and "overrides" in arm:
            arm["overrides"] = as_written["overrides"]
    return block


def _less_words(block: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in block.items() if key not in WORDS}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
