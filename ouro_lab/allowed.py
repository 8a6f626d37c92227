"""What a file may build. A `_target_` names code, and a study's file or a run's config may come from a stranger."""

import importlib.util
import inspect
import os
import pydoc
import sys
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

OWN = ("ouro_lab", "analysis")
BUILDERS = ("ouro_lab.model", "ouro_lab.training.trainer", "ouro_lab.checkpoint")  # functions of ours that only build
LIBRARIES = ("torch.nn", "torch.optim", "lightning.pytorch.strategies", "lightning.pytorch.plugins")
VARIABLE = "OURO_ALLOW"


class RefusedError(ValueError):
    """A `_target_` that is not built; one line."""


def check_targets(content: Any) -> None:
    """Looks at every `_target_` of nested containers before any of them is built.

    Raises:
        RefusedError: the first that is not allowed (see `allowed_object`).
    """
    for target in _targets(content):
        allowed_object(target)


def allowed_object(target: Any) -> Any:
    """The class or function that `_target_` names.

    Allowed are our own classes and the functions that build backbones and trainers, classes of torch.nn, torch.optim
    and Lightning's strategies and plugins, and whatever stands in a module under the working directory or in a package
    that OURO_ALLOW names. A name is looked at before its module is imported, since importing runs code, and what it
    leads to once more, since `mine.os.system` is not mine.

    Raises:
        RefusedError: anything else; also what cannot be imported.
    """
    return _allowed(str(target), os.environ.get(VARIABLE, ""), Path.cwd())


@lru_cache(maxsize=512)
def _allowed(target: str, named: str, folder: Path) -> Any:
    if not _may_import(target, named, folder):
        raise RefusedError(_refusal(target))
    try:
        found = pydoc.locate(target)
    except pydoc.ErrorDuringImport as error:
        raise RefusedError(f"_target_ = {target}: cannot be imported ({str(error).splitlines()[0]})") from None
    if found is None:
        raise RefusedError(f"_target_ = {target}: cannot be imported (there is no such name)")
    home = str(getattr(found, "__module__", ""))
    if not _may_import(home, named, folder) or not _may_build(found, home):
        raise RefusedError(_refusal(target))
    return found


def _may_import(name: str, named: str, folder: Path) -> bool:
    root = name.partition(".")[0]
    if any(part.startswith("_") for part in name.split(".") if root in OWN):
        return False
    theirs = [word for word in named.replace(":", ",").replace(",", " ").split() if word]
    if root == "ouro_lab" or _within(name, (*LIBRARIES, *theirs)):
        return True
    return root not in OWN and root.isidentifier() and _lies_under(root, folder)


def _may_build(found: Any, home: str) -> bool:
    """Of ours and of the libraries classes alone: among functions there are those that write, load and run."""
    if not _within(home, ("ouro_lab", *LIBRARIES)):
        return True
    return inspect.isclass(found) or (inspect.isfunction(found) and _within(home, BUILDERS))


def _lies_under(root: str, folder: Path) -> bool:
    """Whether the top-level module `root` would be imported from `folder` or the repository, and is not installed."""
    if root in sys.stdlib_module_names:
        return False
    try:
        spec = importlib.util.find_spec(root)
    except (ImportError, ValueError):
        return False
    places = [spec.origin, *(spec.submodule_search_locations or [])] if spec is not None else []
    files = [Path(place).resolve() for place in places if place and place not in ("built-in", "frozen")]
    homes = (folder.resolve(), Path(__file__).resolve().parents[1])
    return (
        bool(files)
        and all(any(file.is_relative_to(home) for home in homes) for file in files)
        and not any(file.is_relative_to(installed) for file in files for installed in _installed())
    )


@lru_cache(maxsize=1)
def _installed() -> tuple[Path, ...]:
    """Where the interpreter keeps what is installed; a virtual environment may lie under the working directory."""
    return tuple(
        {Path(path).resolve() for name, path in sysconfig.get_paths().items() if name.endswith(("lib", "stdlib"))}
    )


def _within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _targets(content: Any) -> Iterator[Any]:
    if isinstance(content, dict):
        if "_target_" in content:
            yield content["_target_"]
        content = list(content.values())
    if isinstance(content, (list, tuple)):
        for item in content:
            yield from _targets(item)


def _refusal(target: str) -> str:
    return (
        f"_target_ = {target}: not built from a file; must be one of ours, of torch.nn or torch.optim, a module under"
        f" the working directory, or in a package named by {VARIABLE}={target.partition('.')[0]}"
    )
