"""Where a run's weights come from: `init_from` names a checkpoint, a trunk folder, a Llama in GGUF, a run, or an arm of
any study.

Arms of one study that start from each other are its stages: a stage may run once the one before it is done.
"""

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ouro_lab import records, stages
from ouro_lab.config import ROOT, ConfigError

if TYPE_CHECKING:
    from ouro_lab.interop import Trunk
    from ouro_lab.study import Run, Study

WAYS = (
    "{study: …, arm: …}, {arm: …}, {from: …} or {package: …}, with layers: […] where the stack is laid out anew,"
    " optimiser: carried or fresh"
)
OPTIMISER = ("carried", "fresh")
SOURCES = ({"study", "arm"}, {"arm"}, {"from"}, {"package"})
Moments = dict[str, dict[str, Tensor]]  # by parameter name
Stamps = tuple[tuple[str, int, int], ...]  # of files: name, time of the last change in ns, size
GATE, LAYERS, GGUF = "early_exit_gate.", "layers.", ".gguf"
CKPT = "CKPT"  # as init_from: the checkpoint that the environment names


@dataclass(frozen=True)
class Start:
    """path: a checkpoint, a trunk folder, a Llama in GGUF or a run's directory.

    identity: what a run's hash covers: the weights' digest, or the id of the run that made them. layers: which of its
    layers stands at each place of the backbone's stack, zero-based, to make a stack deeper (paper §5, up-cycling) or to
    leave some out. carries: the optimiser's moments and step counts go on too. source: the run, where it is an arm of a
    study.
    """

    path: Path
    identity: str
    layers: tuple[int, ...] | None = None
    carries: bool = False
    source: "Run | None" = field(default=None, compare=False, repr=False)

    @property
    def ready(self) -> bool:
        """Whether the weights are final: those of a run that is not done are not."""
        return self.source is None or self.source.state == "done"

    def check_ready(self) -> None:
        """Raises ConfigError, with the command that makes the weights, where they are not final."""
        if self.source is not None and not self.ready:
            raise ConfigError(f"init_from = {self.path}: {stages.not_done(self.source)}")

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
        from ouro_lab.training.checkpoint import backbone_weights

        if self.path.suffix == GGUF:
            return self.relaid(dict(_llama(self.path).state_dict()))
        trunk = _is_trunk(self.path)
        return self.relaid(dict(opened(self.path).model.state_dict()) if trunk else backbone_weights(self._newest()))

    def moments(self) -> Moments:
        """The optimiser's state by the backbone's own names; none where it begins afresh.

        Raises:
            ConfigError: the checkpoint has none.
        """
        from ouro_lab.training.checkpoint import backbone_moments

        if not self.carries:
            return {}
        weights_alone = _is_trunk(self.path) or self.path.suffix == GGUF
        found = None if weights_alone else backbone_moments(self._newest())
        if not found:
            raise ConfigError(f"init_from = {self.path}: has no optimiser state to carry; set optimiser: fresh")
        return self.relaid(found)

    def _newest(self) -> Path:
        from ouro_lab.training.checkpoint import newest

        self.check_ready()
        path = self.path if self.path.is_file() else newest(self.path / "checkpoints")
        if path is None:
            raise ConfigError(f"init_from = {self.path}: has no checkpoint")
        return path

    def relaid(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """What belongs to each parameter of the source, as the stack's places have it.

        Raises:
            ConfigError: `layers` names a layer that is not there.
        """
        if self.layers is None:
            return dict(weights)
        inside = {name: value for name, value in weights.items() if name.startswith(LAYERS)}
        count = len({name.split(".")[1] for name in inside})
        for layer in self.layers:
            if not 0 <= layer < count:
                raise ConfigError(f"init_from.layers = {list(self.layers)}: {self.path} has layers 0 … {count - 1}")
        outside = {name: value for name, value in weights.items() if name not in inside}
        return outside | {
            f"{LAYERS}{place}.{name.removeprefix(f'{LAYERS}{layer}.')}": value
            for place, layer in enumerate(self.layers)
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
        if self.path.suffix == GGUF:
            self._check_constants(backbone)

    def _check_constants(self, backbone: nn.Module) -> None:
        """What a Llama computes with and no weight's name or shape tells."""
        from ouro_lab.interop.llama import constants

        config = getattr(backbone, "config", None)
        for name, value in constants(self.path).items():
            found = getattr(config, name, value)
            if not math.isclose(found, value, rel_tol=1e-6):  # the file has them in float32
                raise ConfigError(f"init_from = {self.path}: backbone.{name} = {found:g}: must be {value:g}")


def find(init_from: str | Mapping[str, Any] | None, seed: int, own: "Study | None" = None) -> Start | None:
    """What `init_from` names for the run of this seed; None where it names nothing.

    own: the run's study, whose arms may start from each other. An arm's run need not be `ready`: it is known before.

    Raises:
        ConfigError: it is not there.
    """
    if init_from is None:
        return None
    if init_from == CKPT:
        init_from = str(given(own.name if own is not None else "<study>"))
    if isinstance(init_from, Mapping):
        return _mapped(init_from, seed, own)
    path = ROOT / Path(init_from).expanduser()
    if path.is_file() or _is_trunk(path):
        return Start(path, digest(path))
    for folder in (path, records.runs_root() / init_from):
        if records.checkpoint_step(folder):
            return Start(folder, f"{folder.parent.name}/{folder.name}")
    runs = records.runs_root()
    raise ConfigError(f"init_from = {init_from}: neither a checkpoint, a trunk folder nor a run under {runs}")


def given(study: str = "<study>") -> Path:
    """The checkpoint of CKPT=.

    Raises:
        ConfigError: it is not set.
    """
    if not os.environ.get(CKPT):
        how = f"make experiment NAME={study} CKPT=<folder in Ouro's Hugging Face layout>"
        raise ConfigError(f"{CKPT} is missing: needs weights; {how}")
    return ROOT / Path(os.environ[CKPT]).expanduser()


def digest(path: Path) -> str:
    """SHA-256 of a trunk's weights or of any other file; of a file that has not changed it is made once."""
    return _digest(path, _stamps(path))


def _mapped(init_from: Mapping[str, Any], seed: int, own: "Study | None") -> Start | None:
    """`{study, arm}`, `{arm}` of the same study, `{from: a path or a run}` or `{package: one that comes with a GGUF
    file}`, each with `layers` and `optimiser`."""
    source = {key: value for key, value in init_from.items() if key not in ("layers", "optimiser")}
    if set(source) not in SOURCES or (set(source) == {"arm"} and own is None):
        raise ConfigError(f"init_from = {dict(init_from)}: must be a path, a run, or {WAYS}")
    found = _source(source, seed, own)
    if found is not None and "layers" in init_from:
        layers = init_from["layers"]
        if not isinstance(layers, list) or not layers or any(type(layer) is not int for layer in layers):
            raise ConfigError(f"init_from.layers = {layers}: must be a list of layers of the source, as [0, 1, 0, 1]")
        found = replace(found, identity=f"{found.identity} layers {layers}", layers=tuple(layers))
    return found if found is None else _carrying(found, str(init_from.get("optimiser", "fresh")))


def _source(source: Mapping[str, Any], seed: int, own: "Study | None") -> Start | None:
    if "from" in source:
        return find(source["from"], seed, own)
    if "package" in source:
        return _of_package(source["package"])
    run = stages.run_of(source, seed, own)
    return Start(run.directory, f"{run.study}/{run.id}", source=run)


def _of_package(package: str) -> Start:
    try:
        from ouro_lab.data.gguf import packaged  # the package imports Lightning, which most of the verbs do without

        path = packaged(package)
    except FileNotFoundError as error:
        raise ConfigError(f"init_from = {{package: {package}}}: {error}") from None
    return Start(path, digest(path))


def _carrying(found: Start, optimiser: str) -> Start:
    if optimiser not in OPTIMISER:
        raise ConfigError(f"init_from.optimiser = {optimiser}: must be one of {', '.join(OPTIMISER)}")
    if optimiser == "fresh":
        return found
    return replace(found, identity=f"{found.identity} optimiser {optimiser}", carries=True)


def _stamps(path: Path) -> Stamps:
    files = [path] if path.is_file() else sorted(path.iterdir())
    return tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)


@lru_cache(maxsize=64)
def _digest(path: Path, stamps: Stamps) -> str:
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return opened(path).digest


def opened(folder: Path) -> "Trunk":
    """Of a folder that has not changed it is made once: a released one takes seconds to hash.

    Raises:
        ConfigError: the folder does not hold what it says.
    """
    return _opened(folder, _stamps(folder) if folder.is_dir() else ())


@lru_cache(maxsize=2)
def _opened(folder: Path, stamps: Stamps) -> "Trunk":
    from ouro_lab.interop import open_trunk

    try:
        return open_trunk(folder)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"init_from = {folder}: {error}") from error


def _llama(path: Path) -> nn.Module:
    """Raises ConfigError where the file holds no Llama."""
    from ouro_lab.interop.llama import read_llama

    try:
        return read_llama(path)
    except ValueError as error:
        raise ConfigError(f"init_from = {error}") from error


def _is_trunk(path: Path) -> bool:
    return (path / "config.json").is_file()
