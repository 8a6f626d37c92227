"""Data on disk that changes: shards cut short, flipped, swapped or gone, manifests reordered, a changed source."""

import contextlib
import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from ouro_lab.chaos.tiny import Row
from ouro_lab.data import ByteTokenizer, TextFiles
from ouro_lab.data.encoding import Recipe
from ouro_lab.data.shards import MANIFEST, DamagedError
from ouro_lab.data.tokenise import tokenise

PROMISE = "detected by hash, named, made again or refused"
SPLIT = "train"


def rows(folder: Path, quick: bool) -> Iterator[Row]:
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "lines.txt"
    words, dice = ("loop", "depth", "gate", "exit", "prior", "shard"), random.Random(0)
    text.write_text("\n".join(f"{number} {' '.join(dice.choices(words, k=40))}" for number in range(60)))
    recipe = Recipe(TextFiles(str(text), "line"), ByteTokenizer(), holdout=4, piece_bytes=1500)
    yield _damaged(recipe)
    yield _refused(recipe, text)


def _damaged(recipe: Recipe) -> Row:
    made = tokenise(recipe)
    before, tokens = _content(made.folder), made.stream(SPLIT)[:].tolist()
    failed = []
    for name, damage in DAMAGES.items():
        damage(sorted(made.folder.glob(f"{SPLIT}-*.bin")))
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.suppress(DamagedError):
            again = []
            again = tokenise(recipe).stream(SPLIT)[:].tolist()
        named = next(file for file in before if file.startswith(f"{SPLIT}-00001")) in said.getvalue()
        if not (named and again == tokens and _content(made.folder) == before):
            failed.append(name)
    said = f"{', '.join(DAMAGES)}: {'FAILED ' + ', '.join(failed) if failed else 'named, made again, the same bytes'}"
    return Row("a data shard that is damaged", PROMISE, said, not failed)


def _refused(recipe: Recipe, text: Path) -> Row:
    """What cannot be made again as it was: every time one line, and nothing is read."""
    made = tokenise(recipe)
    manifest = made.folder / MANIFEST
    whole, failed = manifest.read_text(), []
    for name, change in MANIFESTS.items():
        facts = json.loads(whole)
        change(facts)
        manifest.write_text(json.dumps(facts))
        if not _one_line(lambda: tokenise(recipe).stream(SPLIT)[:]):
            failed.append(name)
    manifest.write_text(whole)
    made = tokenise(recipe)  # opened before its source changes, after which it would be another corpus
    flip(sorted(made.folder.glob(f"{SPLIT}-*.bin")))
    text.write_text(text.read_text().replace("loop", "hoop"))
    if not _one_line(lambda: made.stream(SPLIT)[:]):
        failed.append("source changed")
    cases = ", ".join((*MANIFESTS, "bits flipped and source changed"))
    said = f"{cases}: {'FAILED ' + ', '.join(failed) if failed else 'refused in one line'}"
    return Row("a manifest or a source that changed", PROMISE, said, not failed)


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _one_line(read: Callable[[], object]) -> bool:
    try:
        read()
    except DamagedError as error:
        return "\n" not in str(error)
    return False


def flip(paths: list[Path]) -> None:
    data = bytearray(paths[1].read_bytes())
    data[137] ^= 8
    paths[1].write_bytes(data)


def truncate(paths: list[Path]) -> None:
    paths[1].write_bytes(paths[1].read_bytes()[:-2])


def swap(paths: list[Path]) -> None:
    one, other = paths[0].read_bytes(), paths[1].read_bytes()
    paths[0].write_bytes(other)
    paths[1].write_bytes(one)


DAMAGES: dict[str, Callable[[list[Path]], None]] = {
    "a bit flipped": flip,
    "cut short": truncate,
    "two swapped": swap,
    "gone": lambda paths: paths[1].unlink(),
}
MANIFESTS: dict[str, Callable[[dict], None]] = {
    "pieces reordered": lambda facts: facts["pieces"].reverse(),
    "a count changed": lambda facts: facts["pieces"][0]["splits"]["val"].update(tokens=-1),
    "a path for a digest": lambda facts: facts["pieces"][0]["splits"]["val"].update(sha256="../../../etc/passwd"),
}
