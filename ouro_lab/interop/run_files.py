"""The weights, the tokenizer and the facts of a run's directory, or of one of its checkpoints."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from ouro_lab import records
from ouro_lab.assembly import assemble, ramp_of
from ouro_lab.config import load_config, plain
from ouro_lab.data.tokenizer import TextTokenizer
from ouro_lab.interop.weights import same_names
from ouro_lab.model import LoopedTransformer
from ouro_lab.training.checkpoint import load, newest, step_of

BACKBONE = "backbone."


class RunContent(NamedTuple):
    model: LoopedTransformer
    tokenizer: TextTokenizer | None
    data: dict[str, Any]
    facts: dict[str, Any]


def read_run(source: Path) -> RunContent:
    """source: a run's directory, `study/id` under the folder of runs, or a checkpoint in a run's directory.

    Raises:
        FileNotFoundError: none of these, or the run has no checkpoint.
        ValueError: the backbone is not a looped transformer of ours, or its config does not fit the weights.
    """
    directory, checkpoint = _locate(source)
    config = load_config(directory / "config.yaml")
    parts = assemble(config, device="meta")
    if not isinstance(parts.backbone, LoopedTransformer):
        name = type(parts.backbone).__name__
        raise ValueError(f"backbone._target_ makes a {name}: only a LoopedTransformer can be a trunk")
    stored = {k.removeprefix(BACKBONE): v for k, v in load(checkpoint)["state_dict"].items() if k.startswith(BACKBONE)}
    _fill(parts.backbone, stored, checkpoint)
    facts = _facts(directory, step_of(checkpoint), parts.data) | {"objective": plain(config.objective)}
    return RunContent(parts.backbone, _tokenizer(parts.data), plain(config.data), facts)


def _locate(source: Path) -> tuple[Path, Path]:
    """The run's directory and the checkpoint."""
    directory = source.parent.parent if source.suffix == ".ckpt" else source
    if not (directory / "config.yaml").is_file():
        directory = records.runs_root() / source
    if not (directory / "config.yaml").is_file():
        what = "must be a folder with config.json, a run's directory, study/id, or a checkpoint in a run's directory"
        raise FileNotFoundError(f"source = {source}: {what}")
    if source.suffix == ".ckpt":
        return directory, source
    found = newest(directory / "checkpoints")
    if found is None:
        raise FileNotFoundError(f"source = {source}: the run has no checkpoint")
    return directory, found


def _fill(model: LoopedTransformer, stored: dict[str, torch.Tensor], where: Path) -> None:
    want = model.state_dict()
    same_names(set(want), set(stored), str(where))
    for name, tensor in want.items():
        if stored[name].shape != tensor.shape:
            raise ValueError(
                f"{where}: {name} has shape {list(stored[name].shape)}: the run's config says {list(tensor.shape)}"
            )
    model.load_state_dict(stored, assign=True)


def _tokenizer(data: Any) -> TextTokenizer | None:
    if not hasattr(data, "tokenizer"):
        return None
    data.prepare_data()  # trains it, or finds it beside the tokens
    return data.tokenizer


def _facts(directory: Path, step: int, data: Any) -> dict[str, Any]:
    run = records.read_json(directory / "run.json") or {}
    note, final = records.read_note(directory), records.read_final(directory) or {}
    cost, git = note.get("cost", {}), note.get("git", {})
    facts = {"study": run.get("study"), "run": run.get("id"), "arm": run.get("arm"), "seed": run.get("seed")}
    facts |= {"lr": run.get("lr"), "commit": git.get("commit"), "dirty": git.get("dirty"), "step": step}
    facts["tokens"] = None
    if cost.get("steps"):
        read = ramp_of(data).samples  # a ramp reads less at first
        facts["tokens"] = round(cost["tokens"] * read(step) / read(cost["steps"]))
    # The final metrics are those of the last step, of no earlier checkpoint.
    return facts | {"metrics": final.get("metrics", {}) if final.get("steps") == step else {}}
