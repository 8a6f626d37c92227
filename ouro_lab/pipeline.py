"""A pipeline is a study whose arms are stages that start from each other; its table says what each of them did."""

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from ouro_lab import records
from ouro_lab.config import ConfigError, build
from ouro_lab.study import Run, Study, study_here

COLUMNS = (
    "stage", "seed", "shape", "tokens", "steps", "β", "rate", "optimiser", "length", "RoPE base", "tokens a step",
    "held-out loss at its start", "at its end", "no higher",
)  # fmt: skip


def run(name: str, overrides: Sequence[str] = ()) -> int:
    """What `make experiment` does, then the table, which is also `report/pipeline.md` of the study's folder.

    Raises:
        ConfigError: no arm starts from another of the study's.
    """
    from ouro_lab import verbs

    if not _has_stages(study_here(name, overrides)):
        raise ConfigError(f"NAME = {name}: no arm starts from another of its own; run make experiment NAME={name}")
    code = verbs.run(name, overrides)
    text = report(study_here(name, overrides))
    records.replace_file(records.runs_root() / name / "report" / "pipeline.md", f"{text}\n")
    print(text)
    return code


def _has_stages(study: Study) -> bool:
    starts = [config.init_from for config in study.arm_configs.values()]
    mapped = [start for start in starts if isinstance(start, Mapping)]
    return any("arm" in start and start.get("study", study.name) == study.name for start in mapped)


def report(study: Study) -> str:
    """The stages as a table in Markdown, and whether each ended with a held-out loss no higher than at its start.

    The loss is `val/loss`, the last loop's on the stage's own validation set, in nats a token; the one at its start is
    of the weights it starts from.
    """
    runs = study.expand()
    rows = [_row(one) for one in runs]
    table = [_line(COLUMNS), _line("---" for _ in COLUMNS), *(_line(row.values()) for row in rows)]
    return "\n".join([*table, "", _verdict(runs, rows)])


def held_out(one: Run) -> tuple[float | None, float | None]:
    """The held-out loss at a stage's start and end; None where it has not been measured."""
    rows = records.read_metrics(one.directory / "metrics.jsonl")
    first = rows[0].get("val/loss") if rows and rows[0]["step"] == 0 else None
    final = (records.read_final(one.directory) or {}).get("metrics", {})
    return first, final.get("final/val/loss")


def _row(one: Run) -> dict[str, str]:
    config, note = one.config, records.read_note(one.directory)
    cost = note.get("cost", {})
    first, last = held_out(one)
    cells = [
        one.arm, one.seed, cost.get("shape"), _count(cost.get("tokens")), _count(cost.get("steps")),
        _beta(config["objective"]), _rate(config["optim"], cost.get("steps")), _optimiser(one),
        config["data"]["length"], _count(note.get("backbone", {}).get("rope_base")), _batch(config["data"]),
        _loss(first), _loss(last), _no_higher(first, last),
    ]  # fmt: skip
    return {name: "–" if cell is None else str(cell) for name, cell in zip(COLUMNS, cells, strict=True)}


def _verdict(runs: Sequence[Run], rows: Sequence[Mapping[str, str]]) -> str:
    """One line."""
    unfinished = [one.arm for one in runs if one.state != "done"]
    higher = [row["stage"] for row in rows if row["no higher"] == "no"]
    words = f"no: {', '.join(higher)}" if higher else "yes"
    if unfinished:
        words = f"{words if higher else 'not known'}; unfinished: {', '.join(unfinished)}"
    return f"Held-out loss at each stage's end no higher than at its start: {words}"


def _optimiser(one: Run) -> str:
    return "carried" if one.start is not None and one.start.carries else "fresh"


def _beta(objective: Mapping[str, Any]) -> float | None:
    return getattr(build(OmegaConf.create(dict(objective)), "objective"), "beta", None)


def _rate(optim: Mapping[str, Any], steps: int | None) -> str | None:
    """`0.002 → 0.0002`: at its highest and at the last step."""
    if not steps:
        return None
    built = build(OmegaConf.create(dict(optim)), "optim")
    last = built.lr * built.schedule(steps - 1, steps)
    return f"{built.lr:.3g}" if f"{last:.3g}" == f"{built.lr:.3g}" else f"{built.lr:.3g} → {last:.3g}"


def _batch(data: Mapping[str, Any]) -> str:
    sizes = [*(size for _, size in data.get("ramp", ())), data["batch_size"]]
    return " → ".join(f"{size * data['length']:,}" for size in sizes)


def _no_higher(first: float | None, last: float | None) -> str | None:
    return None if first is None or last is None else "yes" if last <= first else "no"


def _loss(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def _count(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}"


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"
