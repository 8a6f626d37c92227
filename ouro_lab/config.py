"""Composition with Hydra, and errors that name the field, the value and what would be valid."""

import copy
import difflib
import inspect
import os
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ouro_lab.allowed import RefusedError, allowed_object, check_targets
from ouro_lab.secrets import is_secret
from ouro_lab.yaml_file import check_yaml

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
EXPERIMENTS = ROOT / "experiments"

# What a run's config may hold at the top; `study` is the study's own block.
SECTIONS = ("backbone", "data", "objective", "optim", "trainer", "launcher", "tracking", "evaluation")
SCALARS = ("seed", "budget", "do", "init_from", "study")


class ConfigError(ValueError):
    """One line: what is wrong, and what would be valid."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its type where it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def compose_config(name: str, overrides: Sequence[str] = (), folder: Path = EXPERIMENTS) -> DictConfig:
    """The composed config of the file `name` in `folder`, with choices from conf/.

    Raises:
        ConfigError: unknown file, choice or key, with the nearest valid one.
    """
    _check_file(folder / f"{name}.yaml")
    try:
        cfg = _compose(name, overrides, folder)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:  # a malformed override too
        raise ConfigError(_explain(error, name, folder)) from None
    unknown = [str(key) for key in cfg if key not in SECTIONS + SCALARS]
    if unknown:
        raise ConfigError(f"{name}: {unknown[0]}: unknown key; {nearest(unknown[0], SECTIONS + SCALARS)}")
    check_leaves(cfg)
    return cfg


def load_config(path: Path) -> DictConfig:
    """A run's own config.yaml.

    Raises:
        FileNotFoundError, ConfigError: none, or one that is malformed or holds no mapping.
    """
    _check_file(path)
    try:
        content = OmegaConf.load(path)
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(content, DictConfig):
        raise ConfigError(f"{path}: must hold a mapping")
    return content


def check_leaves(cfg: DictConfig) -> None:
    """Every leaf of a section must be an argument of what the section builds."""
    for section in SECTIONS:
        if section in cfg and isinstance(cfg[section], DictConfig):
            _check_node(section, cfg[section])


def build(node: DictConfig, path: str, **extra: Any) -> Any:
    """Hydra's instantiate of what a file may build, with the constructor's own one-line error, not a traceback."""
    try:
        check_targets(plain(node))
    except RefusedError as error:
        raise ConfigError(f"{path}: {error}") from None
    try:
        return instantiate(node, **extra, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, (ValueError, FileNotFoundError)):
            raise ConfigError(str(cause)) from cause
        first = str(cause if cause is not None else error).splitlines()[0]
        raise ConfigError(f"{path}: {first}") from cause


def nearest(word: str, valid: Iterable[str]) -> str:
    """`did you mean x? valid: x, y, z`."""
    valid = sorted(valid)
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}valid: {', '.join(valid)}"


def plain(node: Any) -> Any:
    """Python containers of a config node, interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _check_file(path: Path) -> None:
    if path.is_file():
        try:
            check_yaml(path)
        except ValueError as error:
            raise ConfigError(str(error)) from None


def _environment(name: str, default: str | None = None) -> str | None:
    """`${oc.env:NAME}` for all but credentials: a run's config is written down and tracked."""
    if is_secret(name):
        raise ConfigError(f"${{oc.env:{name}}}: looks like a credential; must not stand in a config")
    if name not in os.environ and default is None:
        raise ConfigError(f"${{oc.env:{name}}}: no such environment variable")
    return os.environ.get(name, default)


OmegaConf.register_new_resolver("oc.env", _environment, replace=True)


def _compose(name: str, overrides: Sequence[str], folder: Path) -> DictConfig:
    """Choices of groups by Hydra, once; then the values, by the function with which Hydra ends a composition.

    It takes a fifth of a second, and a study has an arm per few values. What goes wrong is Hydra's to say.
    """
    overrides = [_may_add(override) for override in overrides]
    choices = tuple(override for override in overrides if _is_choice(override))
    cfg = copy.deepcopy(_choose(name, choices, folder, _files(folder)))
    try:
        values = OverridesParser.create().parse_overrides([item for item in overrides if item not in choices])
        if not any(value.is_sweep_override() for value in values):
            ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
            return cfg
    except (HydraException, OmegaConfBaseException):
        pass
    return _by_hydra(name, overrides, folder)


@lru_cache(maxsize=256)
def _choose(name: str, choices: tuple[str, ...], folder: Path, _as_of: tuple) -> DictConfig:
    return _by_hydra(name, choices, folder)


def _by_hydra(name: str, overrides: Sequence[str], folder: Path) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(folder), version_base=None):
        return compose(name, overrides=[f"hydra.searchpath=[file://{CONF}]", *overrides])


def _files(folder: Path) -> tuple[tuple[str, int], ...]:
    """What a composition may read, with the time of its last change in ns."""
    found = [*CONF.rglob("*.yaml"), *folder.glob("*.yaml"), *folder.glob("base/*.yaml")]
    return tuple((str(file), file.stat().st_mtime_ns) for file in sorted(found))


def _is_choice(override: str) -> bool:
    """Whether it may change which files are composed."""
    key = override.lstrip("+~").split("=")[0].split("@")[0]
    return "/" in key or (CONF / key).is_dir() or key.startswith("hydra")


def _may_add(override: str) -> str:
    """An argument that a choice leaves at its default may be set without Hydra's `+`: `check_leaves` finds typos."""
    key = override.split("=")[0]
    return f"++{override}" if key.split(".")[0] in (*SECTIONS, "study") and "." in key else override


def plain_unresolved(node: DictConfig) -> dict[str, Any]:
    content = OmegaConf.to_container(node, resolve=False)
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def _check_node(path: str, node: DictConfig) -> None:
    target = plain_unresolved(node).get("_target_")
    if target:
        valid = _arguments(target)
        for key in node:
            if valid is not None and not str(key).startswith("_") and key not in valid:
                raise ConfigError(f"{path}.{key}: unknown key; {nearest(str(key), valid)}")
    for key, child in node.items():
        if isinstance(child, DictConfig):
            _check_node(f"{path}.{key}", child)


def _arguments(target: str) -> set[str] | None:
    """Argument names of a target, None where it takes any."""
    try:
        parameters = inspect.signature(allowed_object(target)).parameters.values()
    except RefusedError as error:
        raise ConfigError(str(error)) from None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"_target_ = {target}: cannot be imported ({error})") from None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters}


def _explain(error: Exception, name: str, folder: Path) -> str:
    """Hydra's several lines as one that names the key and the nearest valid one."""
    text = str(error) + " " + str(error.__cause__ or "")
    if match := re.search(r"Could not override '([^']+)'", text):
        key = match.group(1)
        return f"{key}: unknown key; {_nearest_key(key, name, folder)}"
    if match := re.search(r"Could not find '([^']+)/([^']+)'", text):
        group, choice = match.groups()
        valid = [path.stem for path in (CONF / group).glob("*.yaml")]
        return f"{group} = {choice}: no such choice; {nearest(choice, valid)}"
    if f"Cannot find primary config '{name}'" in text:
        return f"study {name}: no such file in experiments/; {nearest(name, study_names(folder))}"
    if match := re.search(r"Could not override '?([\w/]+)'?\.\s*No match in the defaults list", text):
        return f"{match.group(1)}: no such choice group; valid: {', '.join(SECTIONS)}"
    first = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    if isinstance(error, OverrideParseException):
        return f"override {error.override.removeprefix('++')}: cannot be read ({first.split(' See https')[0]})"
    return f"{name}: {first[:300]}"


def _nearest_key(key: str, name: str, folder: Path) -> str:
    """The nearest key among the siblings of the one that failed."""
    parent, _, leaf = key.rpartition(".")
    composed = _compose(name, (), folder)
    node = OmegaConf.select(composed, parent) if parent else composed
    siblings = list(node) if isinstance(node, DictConfig) else list(SECTIONS + SCALARS)
    if isinstance(node, DictConfig) and "_target_" in node:
        siblings = list(_arguments(node["_target_"]) or siblings)
    return nearest(leaf, [str(sibling) for sibling in siblings if not str(sibling).startswith("_")])


def study_names(folder: Path = EXPERIMENTS) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))
