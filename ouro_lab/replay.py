"""A batch that raised an alarm, computed again: its loss, its gradients, and which tokens it was.

    python -m ouro_lab.replay RUN STEP

RUN is a run's directory or study/id, STEP the alarm's. The weights are those of the newest checkpoint before that step,
so the numbers are the alarm's own where that is the step before, and else those of a model a little younger.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ouro_lab import alarms, records, starts
from ouro_lab.alarms import Alarm
from ouro_lab.assembly import assemble
from ouro_lab.config import first_line, load_config, study_names
from ouro_lab.objectives import token_cross_entropy
from ouro_lab.session import initialise, quiet
from ouro_lab.study import Study
from ouro_lab.training.checkpoint import CheckpointError, backbone_weights, step_of
from ouro_lab.training.norms import norms_by_block

WORST = 12  # tokens shown
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Replay:
    """weights_step: of the checkpoint, 0 for the initial weights. loss: the objective's. norms: of the gradients, by
    block, before clipping. token_losses [T, B, S]: cross-entropies in nats, 0 where there is nothing to predict.
    tokens, targets [B, S].
    """

    alarms: list[Alarm]
    weights_step: int
    loss: float
    norms: dict[str, float]
    token_losses: Tensor
    tokens: Tensor
    targets: Tensor

    @property
    def grad_norm(self) -> float:
        return sum(norm**2 for norm in self.norms.values()) ** 0.5

    @property
    def loop_losses(self) -> list[float]:
        """Mean over targets of each loop's cross-entropy."""
        return (self.token_losses.sum((1, 2)) / (self.targets >= 0).sum()).tolist()


def replay(directory: Path, step: int) -> Replay:
    """Raises: FileNotFoundError or ValueError, one line: no such run, alarm or batch, or files that do not fit."""
    config = load_config(directory / "config.yaml")
    raised = [alarm for alarm in alarms.read(directory) if alarm.step == step and alarm.saved]
    if not raised:
        known = sorted({alarm.step for alarm in alarms.read(directory) if alarm.saved})
        raise ValueError(f"STEP = {step}: no batch was kept; kept are those of steps {known}")
    batches = _batches(directory, raised[-1])
    parts = assemble(config)
    weights_step = _load_weights(directory, config, parts.backbone, step)
    precision = records.read_note(directory).get("execution", {}).get("precision", "32-true")
    with L.Fabric(accelerator="cpu", devices=1, precision=precision).autocast():
        loss = _backward(parts.backbone, parts.objective, batches)
        losses = torch.cat([_token_losses(parts.backbone, batch) for batch in batches], dim=1)
    gradients = [(name, value.grad) for name, value in parts.backbone.named_parameters() if value.grad is not None]
    norms = {block: float(norm) for block, norm in norms_by_block(gradients).items()}
    whole = {key: torch.cat([batch[key] for batch in batches]) for key in ("tokens", "targets")}
    return Replay([a for a in raised if a.batch == raised[-1].batch], weights_step, loss, norms, losses, **whole)


def report(found: Replay) -> str:
    """Lines for a terminal."""
    first = found.alarms[0]
    samples = f", samples {first.samples[0]} … {first.samples[1]}" if first.samples else ""
    lines = [*(f"alarm: {alarm.line}" for alarm in found.alarms)]
    lines += [f"batch {first.batch}{samples}, on the weights of step {found.weights_step}"]
    lines += [f"loss {found.loss:.6g}   gradient norm {found.grad_norm:.6g}"]
    lines += ["by loop   " + "  ".join(f"{loss:.4f}" for loss in found.loop_losses)]
    lines += ["by block  " + "  ".join(f"{block} {norm:.4g}" for block, norm in found.norms.items())]
    lines += ["", f"the {WORST} tokens of the largest last-loop loss: sequence, position, token → target, loss by loop"]
    return "\n".join([*lines, *_worst(found)])


def _worst(found: Replay) -> list[str]:
    last = found.token_losses[-1]  # [B, S]
    order = last.nan_to_num(torch.inf).flatten().topk(min(WORST, last.numel())).indices
    lines = []
    for place in order.tolist():
        row, column = divmod(place, last.shape[1])
        pair = f"{int(found.tokens[row, column])} → {int(found.targets[row, column])}"
        losses = "  ".join(f"{loss:.4f}" for loss in found.token_losses[:, row, column].tolist())
        lines.append(f"{row:5d} {column:5d}  {pair:>15s}  {losses}")
    return lines


def _batches(directory: Path, alarm: Alarm) -> list[Batch]:
    """The micro-batches of all ranks, in order."""
    found = []
    for path in sorted(directory.glob(f"{alarm.saved}*.safetensors")):
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: cannot be read ({first_line(error)})") from None
        if "random/cpu" in tensors:
            torch.set_rng_state(tensors["random/cpu"])
        micros = sorted({name.partition("/")[0] for name in tensors} - {"random"}, key=int)
        for micro in micros:
            found.append({name.partition("/")[2]: t for name, t in tensors.items() if name.startswith(f"{micro}/")})
    if not found:
        raise FileNotFoundError(f"{directory / str(alarm.saved)}: the batch's file is gone")
    return found


def _load_weights(directory: Path, config: DictConfig, backbone: Any, step: int) -> int:
    if hasattr(backbone, "settled"):
        backbone.settled.update(records.read_note(directory).get("attention", {}))
    for path in sorted((directory / "checkpoints").glob("step=*.ckpt"), key=step_of, reverse=True):
        if step_of(path) < step:
            try:
                backbone.load_state_dict(backbone_weights(path))
                return step_of(path)
            except CheckpointError as error:
                print(f"warning: {error}", file=sys.stderr)
    initialise(backbone, config.seed)
    start = starts.find(config.init_from, config.seed, _study(directory))
    if start is not None:
        start.load_into(backbone)
    return 0


def _study(directory: Path) -> Study | None:
    """The study whose arms the run may have started from."""
    about = records.read_json(directory / "run.json") or {}
    return Study(about["study"], about.get("overrides", ())) if about.get("study") in study_names() else None


def _backward(backbone: Any, objective: Any, batches: list[Batch]) -> float:
    """The step's loss; gradients are left in the backbone."""
    total = 0.0
    for batch in batches:
        states = backbone.loop_states(batch["tokens"], batch.get("documents"))
        loss, _ = objective(states, backbone.head_weight, batch["targets"])
        (loss / len(batches)).backward()
        total += float(loss.detach()) / len(batches)
    return total


@torch.no_grad()
def _token_losses(backbone: Any, batch: Batch) -> Tensor:
    states = backbone.loop_states(batch["tokens"], batch.get("documents"))
    return torch.stack([token_cross_entropy(state.hidden, backbone.head_weight, batch["targets"]) for state in states])


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 for bad input."""
    quiet()
    try:
        if len(arguments) != 2 or not arguments[1].isdigit():
            raise ValueError("usage: python -m ouro_lab.replay RUN STEP")
        directory = Path(arguments[0])
        if not (directory / "config.yaml").is_file():
            directory = records.runs_root() / arguments[0]
        if not (directory / "config.yaml").is_file():
            raise FileNotFoundError(f"RUN = {arguments[0]}: neither a run's directory nor study/id")
        print(report(replay(directory, int(arguments[1]))))
    except (ValueError, OSError) as error:
        print(f"error: {first_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
