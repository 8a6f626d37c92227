"""Arms that start from each other: which run one stands for, in which order they may run, what can run no more."""

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ouro_lab import rates, records
from ouro_lab.config import ConfigError, nearest

if TYPE_CHECKING:
    from ouro_lab.study import Run, Study


def run_of(init_from: Mapping[str, Any], seed: int, own: "Study | None") -> "Run":
    """The run of `{study, arm}` with this seed and the arm's chosen rate, done or not. own: the asking study.

    Raises:
        ConfigError: no such arm or seed, or a rate that is not chosen yet.
    """
    source, arm = _unless_circular(init_from, own), str(init_from["arm"])
    words = f"init_from = {{study: {source.name}, arm: {arm}}}"
    rate = source.rate(arm)
    if rate is None and source is own:
        raise ConfigError(f"{words}: its rate is swept in the same study; stages need rates that are set")
    run = source.run(arm, _committed_rate(words, source.name, arm) if rate is None else rate.lr, seed)
    if source is own or run.state == "done" or seed in source.definition.seeds:
        return run
    raise ConfigError(f"{words}: has no run of seed {seed}; its seeds are {list(source.definition.seeds)}")


def _committed_rate(words: str, study: str, arm: str) -> float:
    """What a sweep that is not finished here has chosen elsewhere: committed evidence can be read without its runs."""
    try:
        return float(rates.finished_sweep(study)[arm]["best"])
    except (ConfigError, KeyError):
        swept = f"its learning rates are still being swept; run make experiment NAME={study}"
        raise ConfigError(f"{words}: {swept}") from None


def not_done(run: "Run") -> str:
    return f"its run of seed {run.seed} is not done ({run.state}); run make experiment NAME={run.study}"


def blocked(study: "Study") -> list["Run"]:
    """Runs that never can: what they start from, or what that starts from, ended without being done."""
    found = []
    for run in study.expand():
        source = run.start.source if run.start else None
        while source is not None and source.state not in ("failed", "diverged"):
            source = source.start.source if source.start else None
        if source is not None and not run.finished:
            found.append(run)
    return found


def _unless_circular(init_from: Mapping[str, Any], own: "Study | None") -> "Study":
    """The study that `init_from` names, unless that arm starts, perhaps by way of others, from itself."""
    studies: list[Study] = []
    seen: list[str] = []
    following: Any = init_from
    while isinstance(following, Mapping) and "arm" in following:
        source = _source(following.get("study"), studies[-1] if studies else own, own)
        arm = str(following["arm"])
        if arm not in source.definition.arms:
            valid = nearest(arm, source.definition.arms)
            raise ConfigError(f"init_from: arm = {arm}: not an arm of {source.name}; {valid}")
        seen.append(f"{source.name}/{arm}")
        if len(set(seen)) < len(seen):
            raise ConfigError(f"init_from: {' ← '.join(seen)}: an arm cannot start from itself")
        studies.append(source)
        following = source.arm_configs[arm].init_from
    return studies[0]


def _source(name: str | None, here: "Study | None", own: "Study | None") -> "Study":
    """here: the study whose arm names it, where it names none. Of studies met before the object is the same."""
    for known in (here, own):
        if known is not None and (name is None or name == known.name):
            return known
    return _study(str(name), records.smoke())


@lru_cache(maxsize=16)
def _study(name: str, smoke: bool) -> "Study":
    """As its own verbs see it; composing takes half a second an arm."""
    from ouro_lab.study import study_here

    return study_here(name)
