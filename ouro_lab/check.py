"""The check before anything trains: every arm built on the meta device, every contrast's match, and study.json."""

import json
import re
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ouro_lab import records
from ouro_lab.assembly import OF_GATES, Parts, assemble, ramp_of
from ouro_lab.compute.match import Match, MismatchError, compare, format_table
from ouro_lab.compute.match import check as check_match
from ouro_lab.config import ConfigError, build, nearest, plain
from ouro_lab.data.sampler import Slice
from ouro_lab.metrics_log import LR_SENSITIVITY, terms
from ouro_lab.rates import finished_sweep
from ouro_lab.starts import Start
from ouro_lab.study import Study


def check(study: Study) -> dict[str, Parts]:
    """Builds each arm and refuses a contrast whose held quantity differs over its limit.

    Raises:
        ConfigError: an arm that cannot be built, a mismatch, or a rate chosen on a seed of the verdict, by name.
    """
    _check_rate_seeds(study)
    parts, data = {}, {}  # data by its config: arms mostly differ in their backbones, and to deal out a task takes long
    for name, config in study.arm_configs.items():
        try:
            wanted = json.dumps(plain(config.data), sort_keys=True, default=str)
            parts[name] = assemble(config, "meta", data.get(wanted))
            data[wanted] = parts[name].data
            _check_training(config, parts[name])
            _check_rate_metric(study, parts[name])
        except ValueError as error:
            raise ConfigError(f"{study.name}: arm {name}: {error}") from error
    for name, contrast in study.definition.contrasts.items():
        for arm in (contrast.arm, contrast.reference):
            if contrast.metric == LR_SENSITIVITY:
                _check_grid(study, name, arm)
            else:
                for term in terms(contrast.metric):
                    _check_metric(f"study.contrasts.{name}.metric", term, parts[arm])
            if contrast.where is not None:
                _check_metric(f"study.contrasts.{name}.where.metric", contrast.where["metric"], parts[arm])
        try:
            costs = parts[contrast.arm].cost, parts[contrast.reference].cost
            check_match(name, *costs, list(contrast.equal), contrast.limit)
        except MismatchError as error:
            raise ConfigError(f"{study.name}: {error}") from error
    return parts


def _check_training(config: DictConfig, part: Parts) -> None:
    """What only a run builds: a bad value there would fail every run, three times, before anyone read it."""
    from ouro_lab.training.trainer import check_arguments

    if part.trains != "nothing":
        build(config.optim, "optim")
    trainer = plain(config.trainer)
    check_arguments(trainer)
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    if isinstance(devices, int) and devices > 0:
        Slice(ramp_of(part.data), devices * nodes, 0, trainer.get("accumulate", 1))


def check_starts(study: Study, parts: dict[str, Parts]) -> None:
    """Refuses weights that do not fit the backbone which is to start from them, or that another study has yet to make.

    Raises:
        ConfigError: names arm and key.
    """
    runs = [run for run in study.expand() if run.state == "to do"]
    # The seeds of an arm whose rate is still swept have no runs yet, but it is known what they start from.
    swept = [arm for arm in study.definition.arms if study.rate(arm) is None]
    runs += [study.run(arm, 1.0, seed) for arm in swept for seed in study.definition.seeds]
    once = {(run.arm, run.start.identity): run.start for run in runs if run.start is not None}
    for (arm, _), start in once.items():
        try:
            start.check_fit(_weights(start, study, parts), parts[arm].backbone)
        except ValueError as error:
            raise ConfigError(f"{study.name}: arm {arm}: {error}") from error


def _weights(start: Start, study: Study, parts: dict[str, Parts]) -> dict[str, Any]:
    """Those that are there; of an arm of the same study that has not run yet, its shapes."""
    if start.ready or start.source is None or start.source.study != study.name:
        return start.weights()
    return start.relaid(parts[start.source.arm].backbone.state_dict())


def _check_rate_seeds(study: Study) -> None:
    """A rate chosen on the seeds that it is then judged by favours the arm with the luckier ones."""
    definition, block = study.definition, study.definition.lr
    judged = [contrast for contrast in definition.contrasts.values() if contrast.metric != LR_SENSITIVITY]
    if block is None or not judged:
        return
    where, seeds = "study.lr.seeds", set(block.seeds)
    if block.source:
        try:
            sweep = finished_sweep(block.source)
        except ConfigError:  # not run yet: what needs no rate may go on, and a rate is asked for in the same words
            return
        where = f"study.lr.from = {block.source}"
        seeds = {seed for content in sweep.values() for seed in content.get("seeds", ())}
    if shared := sorted(seeds & set(definition.seeds)):
        raise ConfigError(f"{where}: swept on seed {shared[0]}, which is in study.seeds; choose others for the sweep")


def _check_rate_metric(study: Study, part: Parts) -> None:
    """Losses of a trunk that stands still are the same at every rate of its gate."""
    block = study.definition.lr
    if part.trains == "gate" and block is not None and block.grid and block.metric.startswith("val/loss"):
        raise ValueError(f"study.lr.metric = {block.metric}: does not depend on the gate; use val/gate_loss")


def _check_metric(path: str, metric: str, part: Parts) -> None:
    """A misspelt metric would be noticed only in the report, when everything has run."""
    names = [*part.data.metric_names, *_metrics_of_evaluation(part)]
    by_loop = re.sub(r"_loop\d+", "", metric)
    if metric not in names and by_loop not in [*part.data.metric_names, *OF_GATES]:
        raise ConfigError(f"{path} = {metric}: no such metric; {nearest(metric, names)}")


def _check_grid(study: Study, name: str, arm: str) -> None:
    """Sensitivity to the rate is read off a grid of this very study, on the seeds of the verdict."""
    block = study.definition.lr
    if block is None or not study.sweeps(arm) or not set(study.definition.seeds) <= set(block.seeds):
        what = "needs study.lr.grid, and study.seeds among study.lr.seeds"
        raise ConfigError(f"study.contrasts.{name}.metric = {LR_SENSITIVITY}: {what}")


def _metrics_of_evaluation(part: Parts) -> tuple[str, ...]:
    return part.evaluation.metric_names(part.data, part.backbone.loops) if part.evaluation is not None else ()


def matches(study: Study, parts: dict[str, Parts]) -> dict[str, list[Match]]:
    found = {}
    for name, contrast in study.definition.contrasts.items():
        costs = parts[contrast.arm].cost, parts[contrast.reference].cost
        found[name] = compare(*costs, list(contrast.equal), contrast.limit)
    return found


def match_table(study: Study, parts: dict[str, Parts]) -> str:
    """What each contrast holds equal, for the terminal."""
    blocks = []
    for name, rows in matches(study, parts).items():
        contrast = study.definition.contrasts[name]
        blocks.append(f"{name}: {contrast.arm} against {contrast.reference}\n{format_table(rows)}")
    return "\n\n".join(blocks)


def describe(study: Study, parts: dict[str, Parts]) -> dict[str, Any]:
    """study.json (docs/design.md): all that the report knows besides the runs."""
    definition = study.definition
    first = next(iter(parts.values()))
    return {
        "name": study.name,
        "question": definition.question,
        "hypothesis": definition.hypothesis,
        "claim": list(definition.claim),
        "hash": study.hash,
        "registered": registered(study),
        "seeds": list(definition.seeds),
        "command": command(study),
        "arms": {name: _arm(study, name, part) for name, part in parts.items()},
        "contrasts": _contrasts(study, parts),
        "positive_control": definition.positive_control,
        "floors": first.data.floors(),
        "scope": _scope(study, parts),
        "figures": definition.figures,
        "calibration": definition.calibration,
        "runs": [run.identity() for run in study.expand()],
        "sweep": _sweeps(study),
    }


def command(study: Study) -> str:
    overrides = f' OVERRIDES="{" ".join(study.overrides)}"' if study.overrides else ""
    return f"make experiment NAME={study.name}{overrides}"


def register(study: Study) -> None:
    """Stores the study's hash before its first run; a definition made after its results were seen is marked."""
    path = records.runs_root() / study.name / "registration.json"
    known = records.read_json(path) or {}
    if study.hash not in known:
        seen = sum(run.state in ("done", "diverged") for run in study.expand() if run.phase == "main")
        stamp = {"time": records.now(), "commit": records.provenance()["git"]["commit"], "seen": seen}
        records.write_json(path, known | {study.hash: stamp})


def registered(study: Study) -> dict[str, Any] | None:
    """The registration that counts: another hash than the study's where its results were seen before."""
    known = records.read_json(records.runs_root() / study.name / "registration.json") or {}
    entry = known.get(study.hash)
    if entry is None:
        return None
    if entry["seen"]:
        earlier = next(iter(known))  # in the order of registration; two may share a second
        return {"hash": earlier, **known[earlier]}
    return {"hash": study.hash, **entry}


def save(study: Study, parts: dict[str, Parts]) -> dict[str, Any]:
    content = describe(study, parts)
    folder = records.runs_root() / study.name
    records.write_json(folder / "study.json", content)
    (folder / "study.yaml").write_text(OmegaConf.to_yaml(study.config, resolve=True))
    return content


def _arm(study: Study, name: str, part: Parts) -> dict[str, Any]:
    arm, rate = study.definition.arms[name], study.rate(name)
    return {
        "overrides": list(arm.overrides),
        "shape": part.cost["shape"],
        "lr": rate.lr if rate and study.trains(name) else None,
        "lr_matched": bool(rate and rate.matched),
        "lr_status": rate.status if rate else "rates being swept",
        "cost": part.cost,
        "target": arm.target,
    }


def _contrasts(study: Study, parts: dict[str, Parts]) -> dict[str, Any]:
    rows = matches(study, parts)
    return {
        name: asdict(contrast)
        | {key: list(getattr(contrast, key)) for key in ("equal", "claim", "after")}
        | {"match": [asdict(row) for row in rows[name]]}
        for name, contrast in study.definition.contrasts.items()
    }


def _scope(study: Study, parts: dict[str, Parts]) -> dict[str, Any]:
    primary = [contrast.arm for contrast in study.definition.contrasts.values() if contrast.primary]
    cost = parts[primary[0] if primary else next(iter(parts))].cost
    return {"parameters": cost["parameters"], "tokens": cost["tokens"], **study.definition.scope}


def _sweeps(study: Study) -> dict[str, Any] | None:
    if study.definition.lr is None or not study.definition.lr.grid:
        return None
    swept = [arm for arm in study.definition.arms if study.sweeps(arm)]
    return {arm: study.sweep(arm).as_dict() | {"rate_hash": study.rate_hash(arm)} for arm in swept}
