"""A trunk: trained weights with their tokenizer and where they come from, opened and exported as one folder."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ouro_lab.data.tokenizer import TextTokenizer
from ouro_lab.data.tokenizer_file import TokenizerFile, tokenizer_files
from ouro_lab.interop.ouro import read_ouro, theirs, write_ouro
from ouro_lab.interop.ouro_config import KEPT, OWN_OPTIONS
from ouro_lab.interop.weights import DTYPES, digest, read_object
from ouro_lab.metrics_log import restore, safe
from ouro_lab.model import LoopedTransformer

SCHEMA = 1
OWN = "ouro_lab.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True)
class Trunk:
    """An opened checkpoint.

    digest: sha256 of all weights. data: the data config it was trained with. facts: what ouro_lab.json holds besides
    (study, run, seed, commit, objective, metrics, tokens). config: fields of a foreign config.json that are kept.
    files: the tokenizer's files, as read.
    """

    model: LoopedTransformer
    tokenizer: TextTokenizer | None
    data: dict[str, Any] | None
    digest: str
    facts: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


def open_trunk(source: str | Path) -> Trunk:
    """source: a folder in Ouro's layout, a run's directory (or `study/id`), or one of its checkpoints.

    A model comes in evaluation mode, in the dtype that is stored. A run's tokenizer is made with its data.

    Raises:
        FileNotFoundError, ValueError: one line naming the file and what is wrong; nothing of it is executed.
    """
    path = Path(source).expanduser()
    if (path / "config.json").is_file():
        return _open_folder(path)
    return _open_run(path)


def export_trunk(
    source: str | Path | Trunk,
    folder: str | Path,
    *,
    dtype: str | None = None,
    max_shard_bytes: int | None = None,
) -> Trunk:
    """Writes a run, a checkpoint, a folder or an opened trunk to the new `folder` in Ouro's layout; returns it opened.

    dtype: cast the weights to it (float32, bfloat16, …). max_shard_bytes: several files of at most so many bytes.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: one line; nothing is left half-written.
    """
    trunk = source if isinstance(source, Trunk) else open_trunk(source)
    files, kept = dict(trunk.files), dict(trunk.config)
    if trunk.tokenizer is not None and "tokenizer.json" not in files:
        files |= tokenizer_files(trunk.tokenizer)
        kept |= {"bos_token_id": trunk.tokenizer.eos, "eos_token_id": trunk.tokenizer.eos}
    if trunk.data is not None and "length" in trunk.data:
        kept.setdefault("max_position_embeddings", trunk.data["length"])
    files[OWN] = json.dumps(safe(_own(trunk, dtype)), indent=2, ensure_ascii=False) + "\n"
    target = Path(folder).expanduser()
    write_ouro(target, trunk.model, kept=kept, files=files, dtype=dtype, max_shard_bytes=max_shard_bytes)
    return open_trunk(target)


def weights_digest(model: LoopedTransformer, dtype: str | None = None) -> str:
    """sha256 of a model's weights under their names in Ouro's layout, as they would be stored in `dtype`."""
    tensors = {theirs(name): tensor for name, tensor in model.state_dict().items()}
    return digest({name: tensor.to(DTYPES[dtype]) for name, tensor in tensors.items()} if dtype in DTYPES else tensors)


def _open_folder(folder: Path) -> Trunk:
    own = restore(read_object(folder / OWN)) if (folder / OWN).is_file() else {}
    if own and own.get("schema") != SCHEMA:
        raise ValueError(f"{folder / OWN}: schema = {own.get('schema')!r}: must be {SCHEMA}")
    options = own.pop("backbone", {})
    if not isinstance(options, dict):
        raise ValueError(f"{folder / OWN}: backbone = {str(options)[:40]}: must be an object")
    model, content = read_ouro(folder, options)
    found = weights_digest(model)
    if own.get("digest", found) != found:
        raise ValueError(f"{folder / OWN}: digest = {own['digest']}: that of the weights beside it is {found}")
    files = {name: (folder / name).read_text("utf-8") for name in TOKENIZER_FILES if (folder / name).is_file()}
    config = {name: content[name] for name in KEPT if name in content}
    facts = {name: value for name, value in own.items() if name not in ("schema", "digest", "data")}
    return Trunk(model.eval(), _tokenizer(folder, files, content), own.get("data"), found, facts, config, files)


def _open_run(path: Path) -> Trunk:
    from ouro_lab.interop.run_files import read_run  # composition and training code, which a folder does not need

    run = read_run(path)
    return Trunk(run.model.eval(), run.tokenizer, run.data, weights_digest(run.model), run.facts)


def _tokenizer(folder: Path, files: dict[str, str], content: dict[str, Any]) -> TextTokenizer | None:
    if "tokenizer.json" not in files:
        return None
    eos = content.get("eos_token_id")
    if not isinstance(eos, int | list) or eos == []:
        raise ValueError(f"{folder / 'config.json'}: eos_token_id = {eos!r}: must be an id, as there is a tokenizer")
    first = eos[0] if isinstance(eos, list) else eos
    return TokenizerFile(files["tokenizer.json"], first, content["vocab_size"], str(folder / "tokenizer.json"))


def _own(trunk: Trunk, dtype: str | None) -> dict[str, Any]:
    """ouro_lab.json: what Ouro's config.json cannot say."""
    backbone = {name: getattr(trunk.model.config, name) for name in OWN_OPTIONS}
    weights = {"digest": weights_digest(trunk.model, dtype), "backbone": backbone}
    return {"schema": SCHEMA, **trunk.facts, "data": trunk.data, **weights}
