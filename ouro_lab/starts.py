"""Where a run's weights come from: `init_from` names a checkpoint, a trunk folder, a run, or another study's arm."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ouro_lab import records
from ouro_lab.config import ROOT, ConfigError, nearest

if TYPE_CHECKING:
    from ouro_lab.interop import Trunk
    from ouro_lab.study import Study

WAYS = "{study: …, arm: …} or {from: …}, with layers: […] where the stack is made deeper"
GATE, LAYERS = "early_exit_gate.", "layers."


@dataclass(frozen=True)
class Start:
    """path: a checkpoint, a trunk folder or a run's directory.

    identity: what a run's hash covers: the weights' digest, or the id of the run that made them. layers: which of its
    layers stands at each place of the backbone's stack, zero-based, to make a stack deeper (paper §5, up-cycling).
    """

    path: Path
    identity: str
    layers: tuple[int, ...] | None = None

    def load_into(self, backbone: nn.Module) -> None:
        """Raises ConfigError where they are not this backbone's weights (see `check_fit`)."""
        weights = self.weights()
        self.check_fit(weights, backbone)
        backbone.load_state_dict(weights, strict=False)

    def weights(self) -> dict[str, Tensor]:
        """By the backbone's own names, on the CPU.

        Raises:
            ConfigError: there are none, or `layers` names one that is not there.
        """
        read = self._read()
        return read if self.layers is None else self._relaid(read, self.layers)

    def _read(self) -> dict[str, Tensor]:
        from ouro_lab.training.checkpoint import backbone_weights, newest

        if _is_trunk(self.path):
            return dict(_opened(self.path).model.state_dict())
        path = self.path if self.path.is_file() else newest(self.path / "checkpoints")
        if path is None:
            raise ConfigError(f"init_from = {self.path}: has no checkpoint")
        return backbone_weights(path)

    def _relaid(self, weights: Mapping[str, Tensor], layers: tuple[int, ...]) -> dict[str, Tensor]:
        inside = {name: value for name, value in weights.items() if name.startswith(LAYERS)}
        count = len({name.split(".")[1] for name in inside})
        for layer in layers:
            if not 0 <= layer < count:
                raise ConfigError(f"init_from.layers = {list(layers)}: {self.path} has layers 0 … {count - 1}")
        outside = {name: value for name, value in weights.items() if name not in inside}
        return outside | {
            f"{LAYERS}{place}.{name.removeprefix(f'{LAYERS}{layer}.')}": value
            for place, layer in enumerate(layers)
            for name, value in inside.items()
            if name.startswith(f"{LAYERS}{layer}.")
        }

    def check_fit(self, weights: Mapping[str, Tensor], backbone: nn.Module) -> None:
        """A gate that the weights lack is left as it was initialised; nothing else may be missing, added or reshaped.

        Raises:
            ConfigError: names the first such key.
        """
        own, gated = backbone.state_dict(), any(name.startswith(GATE) for name in weights)
        missing = [name for name in own if name not in weights and (gated or not name.startswith(GATE))]
        extra = [name for name in weights if name not in own]
        if extra and all(name.startswith(GATE) for name in extra):
            raise ConfigError(f"init_from = {self.path}: has an exit gate, the backbone none; set backbone.gate=true")
        for names, what in ((missing, "lacks"), (extra, "has, unlike the backbone,")):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise ConfigError(f"init_from = {self.path}: {what} {names[0]}{more}")
        for name, value in weights.items():
            if value.shape != own[name].shape:
                shapes = f"{list(value.shape)}, the backbone's is {list(own[name].shape)}"
                raise ConfigError(f"init_from = {self.path}: {name} is {shapes}")


def find(init_from: str | Mapping[str, Any] | None, seed: int, study: str) -> Start | None:
    """What `init_from` names for the run of this seed of `study`; None where it names nothing.

    Raises:
        ConfigError: it is not there, or a run that is not done, with the command that does it.
    """
    if init_from is None:
        return None
    if isinstance(init_from, Mapping):
        return _mapped(init_from, seed, study)
    path = ROOT / Path(init_from).expanduser()
    if path.is_file() or _is_trunk(path):
        return Start(path, digest(path))
    for folder in (path, records.runs_root() / init_from):
        if records.checkpoint_step(folder):
            return Start(folder, f"{folder.parent.name}/{folder.name}")
    runs = records.runs_root()
    raise ConfigError(f"init_from = {init_from}: neither a checkpoint, a trunk folder nor a run under {runs}")


def digest(path: Path) -> str:
    """SHA-256 of a trunk's weights or of any other file; of a file that has not changed it is made once."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    return _digest(path, tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files))


def _mapped(init_from: Mapping[str, Any], seed: int, study: str) -> Start | None:
    """`{study, arm}` or `{from: a path or a run}`, either with `layers`."""
    source = {key: value for key, value in init_from.items() if key != "layers"}
    if set(source) not in ({"study", "arm"}, {"from"}):
        raise ConfigError(f"init_from = {dict(init_from)}: must be a path, a run, or {WAYS}")
    found = find(source["from"], seed, study) if "from" in source else _of_arm(source, seed, study)
    if found is None or "layers" not in init_from:
        return found
    layers = init_from["layers"]
    if not isinstance(layers, list) or not layers or any(type(layer) is not int for layer in layers):
        raise ConfigError(f"init_from.layers = {layers}: must be a list of layers of the source, as [0, 1, 0, 1]")
    return Start(found.path, f"{found.identity} layers {layers}", tuple(layers))


def _of_arm(init_from: Mapping[str, Any], seed: int, study: str) -> Start:
    """The run of that arm with the same seed and the arm's chosen rate."""
    name, arm = str(init_from["study"]), str(init_from["arm"])
    words = f"init_from = {{study: {name}, arm: {arm}}}"
    source = _unless_circular(name, arm, study)
    rate, command = source.rate(arm), f"run make experiment NAME={name}"
    if rate is None:
        raise ConfigError(f"{words}: its learning rates are still being swept; {command}")
    run = source.run(arm, rate.lr, seed)
    if run.state == "done":
        return Start(run.directory, f"{name}/{run.id}")
    if run.id not in {other.id for other in source.expand()}:
        raise ConfigError(f"{words}: has no run of seed {seed}; its seeds are {list(source.definition.seeds)}")
    raise ConfigError(f"{words}: its run of seed {seed} is not done ({run.state}); {command}")


def _unless_circular(name: str, arm: str, study: str) -> "Study":
    """The study `name`, unless its arm starts, perhaps by way of others, from the one that asks."""
    seen, following = [study], {"study": name, "arm": arm}
    while isinstance(following, Mapping):
        seen.append(str(following["study"]))
        if len(set(seen)) < len(seen):
            raise ConfigError(f"init_from: {' ← '.join(seen)}: a study cannot start from itself")
        source = _study(seen[-1], records.smoke())
        if following["arm"] not in source.definition.arms:
            valid = nearest(str(following["arm"]), source.definition.arms)
            raise ConfigError(f"init_from: arm = {following['arm']}: not an arm of {source.name}; {valid}")
        following = source.arm_configs[str(following["arm"])].init_from
    return _study(name, records.smoke())


@lru_cache(maxsize=16)
def _study(name: str, smoke: bool) -> "Study":
    """As its own verbs see it; composing takes half a second an arm."""
    from ouro_lab.study import study_here

    return study_here(name)


@lru_cache(maxsize=64)
def _digest(path: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return _opened(path).digest


def _opened(folder: Path) -> "Trunk":
    """Raises ConfigError where the folder does not hold what it says."""
    from ouro_lab.interop import open_trunk

    try:
        return open_trunk(folder)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"init_from = {folder}: {error}") from error


def _is_trunk(path: Path) -> bool:
    return (path / "config.json").is_file()
