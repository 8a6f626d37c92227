"""What a study's file states: its arms, contrasts, seeds and learning-rate block, read strictly."""

from dataclasses import dataclass, field, fields
from typing import Any

from ouro_lab.claims import check_ids
from ouro_lab.config import ConfigError, nearest, study_names
from ouro_lab.metrics_log import LIMITS
from ouro_lab.rates import RateBlock


@dataclass(frozen=True)
class Contrast:
    """An arm against a reference arm: what is held equal within `limit`, on which metric, by which rule.

    rule: `superiority` (better by more than `bound`), `equivalence` (within ±`bound`), `estimate` (no claim).
    metric: `a - b` is the difference of two, for an effect on the one that is larger than that on the other.
    claim: those of the study's claims that this contrast speaks for; the primary one speaks for the rest.
    where: a metric with its `at_least`, `at_most` or `below`, which every run of both arms must meet, and after:
    contrasts that must be supported, or equivalent, by their own rule, for this one to decide anything.
    """

    arm: str
    reference: str
    metric: str
    equal: tuple[str, ...] = ("tokens",)
    limit: float = 0.02
    bound: float = 0.0
    rule: str = "superiority"
    primary: bool = False
    higher_is_better: bool = True
    claim: tuple[str, ...] = ()
    where: dict[str, Any] | None = None
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arm:
    """A named list of config overrides, with the value it must reach if the study states one."""

    overrides: tuple[str, ...]
    target: dict[str, Any] | None = None


@dataclass(frozen=True)
class Definition:
    """The `study` block of a study's file."""

    question: str
    arms: dict[str, Arm]
    hypothesis: str = ""
    claim: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    lr: RateBlock | None = None
    contrasts: dict[str, Contrast] = field(default_factory=dict)
    positive_control: dict[str, Any] | None = None
    scope: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] | None = None  # A/A: {arm, metric, size}
    pilot: str | None = None  # the study, with arms of the same names, whose spread `make power` plans with
    smoke: tuple[str, ...] = ()  # overrides that SMOKE=1 adds: the whole study in seconds, its numbers worth nothing


def parse(name: str, block: dict[str, Any]) -> Definition:
    """The `study` block as dataclasses; unknown keys and bad references are errors that name them."""
    block = dict(block)
    arms = {key: _arm(f"study.arms.{key}", value) for key, value in (block.pop("arms", None) or {}).items()}
    if not arms:
        raise ConfigError(f"study {name}: study.arms is empty: name at least one arm")
    given = (block.pop("contrasts", None) or {}).items()
    contrasts = {key: _make(Contrast, f"study.contrasts.{key}", value) for key, value in given}
    rates = {"source" if key == "from" else key: value for key, value in (block.pop("lr", None) or {}).items()}
    lr = _make(RateBlock, "study.lr", rates) if rates else None
    definition = _make(Definition, "study", {**block, "arms": arms, "contrasts": contrasts, "lr": lr})
    _check_contrasts(definition)
    _check_claims(definition)
    _check_others(definition)
    _check_reach(definition)
    return definition


def _check_contrasts(definition: Definition) -> None:
    for key, contrast in definition.contrasts.items():
        for role in ("arm", "reference"):
            arm = getattr(contrast, role)
            if arm not in definition.arms:
                raise ConfigError(f"study.contrasts.{key}.{role} = {arm}: not an arm; {nearest(arm, definition.arms)}")
        if contrast.rule not in ("superiority", "equivalence", "estimate"):
            valid = "superiority, equivalence, estimate"
            raise ConfigError(f"study.contrasts.{key}.rule = {contrast.rule}: valid: {valid}")
        if not isinstance(contrast.metric, str):
            raise ConfigError(f"study.contrasts.{key}.metric = {contrast.metric}: must be a metric, or `a - b`")
        _check_gates(f"study.contrasts.{key}", contrast, definition.contrasts)
    if definition.contrasts and sum(contrast.primary for contrast in definition.contrasts.values()) != 1:
        raise ConfigError("study.contrasts: exactly one must be primary")


def _check_gates(path: str, contrast: Contrast, contrasts: dict[str, Contrast]) -> None:
    if (where := contrast.where) is not None:
        given = where if isinstance(where, dict) else {}
        limits = [kind for kind in LIMITS if isinstance(given.get(kind), int | float)]
        if len(limits) != 1 or set(given) != {"metric", *limits} or not isinstance(given["metric"], str):
            raise ConfigError(f"{path}.where = {where}: must be a metric and one of {', '.join(LIMITS)}")
    for name in contrast.after:
        if name not in contrasts:
            raise ConfigError(f"{path}.after: {name} is not a contrast; {nearest(name, contrasts)}")
        if contrasts[name].rule == "estimate":
            raise ConfigError(f"{path}.after: {name} has rule estimate, which decides nothing")
    seen, waiting = set(), list(contrast.after)
    while waiting:
        name = waiting.pop()
        if contrasts.get(name) is contrast:
            raise ConfigError(f"{path}.after: comes back to itself")
        if name in contrasts and name not in seen:
            seen.add(name)
            waiting += contrasts[name].after


def _check_claims(definition: Definition) -> None:
    """Claims are rows of the ledger, and a contrast speaks only for what its study claims."""
    check_ids("study.claim", definition.claim)
    for key, contrast in definition.contrasts.items():
        check_ids(f"study.contrasts.{key}.claim", contrast.claim)
        for claim in contrast.claim:
            if claim not in definition.claim:
                raise ConfigError(f"study.contrasts.{key}.claim: {claim} is not in study.claim; add it there")


def _check_others(definition: Definition) -> None:
    """Seeds are distinct integers; a control and a calibration name an arm, a pilot a study."""
    seeds = definition.seeds
    if len(set(seeds)) < len(seeds) or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise ConfigError(f"study.seeds = {list(seeds)}: must be different integers ≥ 0")
    for key in ("positive_control", "calibration"):
        block = getattr(definition, key)
        if block is not None and block.get("arm") not in definition.arms:
            raise ConfigError(f"study.{key}.arm = {block.get('arm')}: not an arm; valid: {', '.join(definition.arms)}")
    pilot = definition.pilot
    if pilot is not None and pilot not in study_names():
        raise ConfigError(f"study.pilot = {pilot}: no such study; {nearest(str(pilot), study_names())}")


def _check_reach(definition: Definition) -> None:
    reach = definition.figures.get("reach")
    if reach is None:
        return
    if not isinstance(reach, dict) or set(reach) != {"metric", "at_least", "arms"}:
        raise ConfigError(f"study.figures.reach = {reach}: must be metric (accuracy/hops_), at_least and arms")
    for arm in reach["arms"]:
        if arm not in definition.arms:
            raise ConfigError(f"study.figures.reach.arms: {arm} is not an arm; {nearest(arm, definition.arms)}")


def _arm(path: str, value: Any) -> Arm:
    return Arm(tuple(value)) if isinstance(value, list) else _make(Arm, path, value)


def _make(kind: Any, path: str, values: dict[str, Any]) -> Any:
    valid = [f.name for f in fields(kind)]
    for key in values:
        if key not in valid:
            raise ConfigError(f"{path}.{key}: unknown key; {nearest(key, valid)}")
    for field_ in fields(kind):
        value = values.get(field_.name, [])
        if str(field_.type).startswith("tuple") and not isinstance(value, (list, tuple)):
            raise ConfigError(f"{path}.{field_.name} = {value}: must be a list")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{path}: {str(error).split('__init__() ')[-1]}") from None
