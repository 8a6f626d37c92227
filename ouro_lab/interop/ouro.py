"""Ouro in the Hugging Face layout, in and out: config.json, safetensors, generation_config.json, modelling files.

Both ways strict. The names of the tensors are the released checkpoint's, which are ours behind the prefix `model.`.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ouro_lab.interop.ouro_config import TOKEN_IDS, read_config, write_config
from ouro_lab.interop.weights import DTYPES, read_object, read_weights, same_names, write_weights
from ouro_lab.model import LoopedTransformer, ModelConfig

HEAD, PREFIX = "lm_head.weight", "model."
MODELLING = ("configuration_ouro.py", "modeling_ouro.py")


def read_ouro(folder: Path, options: Mapping[str, Any] | None = None) -> tuple[LoopedTransformer, dict[str, Any]]:
    """The model, in the dtype that is stored, and the content of config.json.

    options: our own of the block, which config.json cannot say (`ouro_config.OWN_OPTIONS`).

    Raises:
        FileNotFoundError, ValueError: one line that names the file and the field or tensor; nothing is executed.
    """
    content = read_object(folder / "config.json")
    config = read_config(content, str(folder / "config.json"), options)
    stored = read_weights(folder)
    if config.layers > len(stored):  # or a number in a file would decide how long the next line takes
        raise ValueError(
            f"{folder / 'config.json'}: num_hidden_layers = {config.layers}: there are {len(stored)} tensors"
        )
    try:
        with torch.device("meta"):
            model = LoopedTransformer(config)
    except (TypeError, RuntimeError):
        raise ValueError(f"{folder / 'config.json'}: names a size that no tensor can have") from None
    _check(stored, shapes(config), content.get("dtype", content.get("torch_dtype")), folder)
    model.load_state_dict({ours(name): tensor for name, tensor in stored.items()}, assign=True)
    return model, content


def write_ouro(
    folder: Path,
    model: LoopedTransformer,
    *,
    kept: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
    dtype: str | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Writes `folder`, which must not exist yet: whole or not at all.

    kept: fields of config.json beside the shape (`ouro_config.KEPT`). files: further files by name: the tokenizer's,
    ouro_lab.json. dtype: cast to it; None keeps the model's. max_shard_bytes: None is one file.

    Raises:
        FileExistsError: `folder` exists.
        ValueError: not Ouro's block, parameters of several dtypes, an unknown dtype, or token ids that the tokenizer
            contradicts.
    """
    tensors = {theirs(name): tensor.detach() for name, tensor in model.state_dict().items()}
    name = dtype or dtype_of(tensors)
    if name not in DTYPES:
        raise ValueError(f"dtype = {name}: must be one of {', '.join(DTYPES)}")
    content = write_config(model.config, name, kept or {})
    check_token_ids(content, files or {})
    ids = {field: content[field] for field in TOKEN_IDS if content.get(field) is not None}

    def fill(target: Path) -> None:
        cast = {key: tensor.to(DTYPES[name]) for key, tensor in tensors.items()}
        write_weights(target, cast, max_shard_bytes)
        _write_json(target / "config.json", content)
        _write_json(target / "generation_config.json", {"_from_model_config": True, **ids})
        for file in MODELLING:
            shutil.copyfile(Path(__file__).parent / "hf" / file, target / file)
        for file, text in (files or {}).items():
            (target / file).write_text(text, encoding="utf-8")

    whole_folder(folder, fill)


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the layout and its shape, in the order in which it is stored."""
    with torch.device("meta"):
        return {theirs(name): tuple(value.shape) for name, value in LoopedTransformer(config).state_dict().items()}


def theirs(name: str) -> str:
    return name if name == HEAD else PREFIX + name


def ours(name: str) -> str:
    return name.removeprefix(PREFIX)


def dtype_of(tensors: Mapping[str, Tensor]) -> str:
    """The one dtype of all tensors.

    Raises:
        ValueError: they have several.
    """
    found = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
    if len(found) != 1:
        raise ValueError(f"dtype: the parameters have several ({', '.join(sorted(found))}); name one to cast to")
    return found.pop()


def check_token_ids(config: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Refuses ids of special tokens that lie outside the vocabulary, or that the tokenizer's own files contradict.

    Early releases of Ouro-Thinking named 0, `<|endoftext|>`, where a turn ends with 2, `<|im_end|>`, and so never
    stopped.
    """
    vocabulary: dict[str, Any] = json.loads(files.get("tokenizer.json", '{"model": {"vocab": {}}}'))
    names = vocabulary["model"]["vocab"] | {t["content"]: t["id"] for t in vocabulary.get("added_tokens", [])}
    if names and max(names.values()) >= config["vocab_size"]:
        raise ValueError(f"tokenizer.json: its largest id is {max(names.values())}, vocab_size {config['vocab_size']}")
    said = json.loads(files.get("tokenizer_config.json", "{}"))
    for field in TOKEN_IDS:
        token = said.get(field.removesuffix("_id"))
        token = token["content"] if isinstance(token, dict) else token
        for number in _list(config.get(field)):
            if type(number) is not int or not 0 <= number < config["vocab_size"]:
                raise ValueError(f"{field} = {number!r}: must be an id below vocab_size = {config['vocab_size']}")
        if token is not None and config.get(field) is not None and names.get(token) not in _list(config[field]):
            raise ValueError(f"{field} = {config[field]}: the tokenizer says {token}, which is {names.get(token)}")


def whole_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """`fill` writes a folder beside `folder`, which then takes its name: nobody sees half an export.

    Raises:
        FileExistsError: `folder` exists.
    """
    if folder.exists():
        raise FileExistsError(f"folder = {folder}: exists; must be a new one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        fill(beside)
        for path in beside.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        beside.chmod(0o755)  # mkdtemp lets nobody else read
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _check(stored: Mapping[str, Tensor], want: Mapping[str, tuple[int, ...]], dtype: Any, folder: Path) -> None:
    same_names(set(want), set(stored), str(folder))
    declared = dtype or dtype_of({name: stored[name] for name in list(want)[:1]})
    if not isinstance(declared, str) or declared not in DTYPES:
        raise ValueError(f"{folder}: dtype = {declared!r}: must be one of {', '.join(DTYPES)}")
    for name, shape in want.items():
        tensor = stored[name]
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{folder}: {name} has shape {list(tensor.shape)}: config.json says {list(shape)}")
        if tensor.dtype != DTYPES[declared]:
            found = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{folder}: {name} is {found}: config.json or the first tensor says {declared}")


def _list(ids: Any) -> list[Any]:
    return [] if ids is None else ids if isinstance(ids, list) else [ids]


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
