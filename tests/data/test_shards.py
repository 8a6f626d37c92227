"""Shards: what was written is what is read, or it is named and made again; a kill at any instant loses nothing."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from text_support import Texts, content, recipe_of, some_texts, streams_by_hand

from ouro_lab.chaos.shards import DAMAGES, MANIFESTS, flip
from ouro_lab.data import BPETokenizer, ByteTokenizer, TextData, TextFiles, encoding, shards, text_data
from ouro_lab.data.documents import SPLITS
from ouro_lab.data.encoding import Recipe
from ouro_lab.data.journal import Journal
from ouro_lab.data.parallel import Rate
from ouro_lab.data.shard_set import ShardSet
from ouro_lab.data.shards import MANIFEST, DamagedError
from ouro_lab.data.tokenise import tokenise

CORPUS = Texts(some_texts(60))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURO_CACHE", str(tmp_path / "cache"))


def shard_files(made: ShardSet, split: str = "train") -> list[Path]:
    return sorted(made.folder.glob(f"{split}-*.bin"))


def test_a_stream_is_eos_document_eos_however_it_is_cut() -> None:
    expected = streams_by_hand(CORPUS, 4)
    for piece_bytes in (1, 1500, 1 << 20):
        made = tokenise(recipe_of(CORPUS, piece_bytes=piece_bytes))
        for split in SPLITS:
            stream = made.stream(split)
            assert stream[:].tolist() == expected[split]
            for start, stop in ((0, 1), (700, 2000), (len(stream) - 5, len(stream) + 9), (3, 3)):
                assert stream[start:stop].tolist() == expected[split][start:stop]
            totals = made.manifest.totals(split)
            assert totals["tokens"] == len(stream) == totals["bytes"] + totals["documents"] + 1
    assert len(shard_files(tokenise(recipe_of(CORPUS)))) > 2


def test_documents_come_back_from_their_tokens() -> None:
    bpe = BPETokenizer(300)
    bpe.train(CORPUS.texts)
    for tokenizer in (ByteTokenizer(), bpe):
        made = tokenise(recipe_of(CORPUS, tokenizer=tokenizer))
        assert list(made.texts("val")) == CORPUS.texts[2::4]


def test_a_shard_is_named_by_its_content_and_listed_with_it() -> None:
    made = tokenise(recipe_of(CORPUS))
    for split in SPLITS:
        for index, (path, shard) in enumerate(zip(shard_files(made, split), made.manifest.shards(split), strict=True)):
            assert shard.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
            assert path.name == f"{split}-{index:05d}-{shard.sha256[:16]}.bin"
    facts = json.loads((made.folder / MANIFEST).read_text())
    assert facts["tokenizer"]["identity"] == "byte" and facts["source"]["holdout"] == 4


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_shard_is_named_and_made_again(damage: Callable, capsys: pytest.CaptureFixture) -> None:
    before = content(tokenise(recipe_of(CORPUS)).folder)
    for reopened in (False, True):
        made = tokenise(recipe_of(CORPUS))
        stream = made.stream("train")
        damage(shard_files(made))
        name = next(name for name in before if name.startswith("train-00001"))
        if reopened:
            stream = tokenise(recipe_of(CORPUS)).stream("train")
        assert stream[:].tolist() == streams_by_hand(CORPUS, 4)["train"]
        printed = capsys.readouterr().out
        assert f"shard {name} in {made.folder}: " in printed and "made again from texts" in printed
        assert content(made.folder) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_text(path.read_text().replace("1", "2")), "lines no longer gives the same tokens"),
        (lambda path: path.write_text("x"), r"cannot be made again \(corpus = lines: 1 documents; must be"),
        (lambda path: path.unlink(), r"cannot be made again \(path = .*: no such file"),
    ],
)
def test_a_shard_whose_source_changed_is_refused_in_one_line(change: Callable, message: str, tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(CORPUS.texts))
    made = tokenise(recipe_of(TextFiles(str(path), "line")))
    flip(shard_files(made))
    change(path)
    is_refused(made, message)


def test_a_remote_corpus_mends_nothing() -> None:
    made = tokenise(recipe_of(Texts(CORPUS.texts, "far", remote=True)))
    flip(shard_files(made))
    is_refused(made, "far is read over a network; delete the file and prepare the data again")


def is_refused(made: ShardSet, message: str) -> None:
    with pytest.raises(DamagedError, match=rf"^shard train-00001-\w+\.bin in .*: SHA-256 .*; {message}") as error:
        made.stream("train")[:]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_a_changed_manifest_is_refused_in_one_line(change: Callable) -> None:
    folder = tokenise(recipe_of(CORPUS)).folder
    facts = json.loads((folder / MANIFEST).read_text())
    change(facts)
    (folder / MANIFEST).write_text(json.dumps(facts))
    with pytest.raises(DamagedError, match=r"^manifest .*manifest\.json: damaged; delete the folder"):
        tokenise(recipe_of(CORPUS))
    (folder / MANIFEST).write_text("[1")
    with pytest.raises(DamagedError, match=r"^manifest .*: damaged"):
        tokenise(recipe_of(CORPUS))


def test_a_shard_is_verified_once_when_first_read(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tokenise(recipe_of(CORPUS))
    verified: list[str] = []
    fault = shards.fault
    monkeypatch.setattr(shards, "fault", lambda path, *rest: verified.append(path.name) or fault(path, *rest))
    stream = made.stream("train")
    assert verified == []
    assert len(stream[:10]) == len(stream[5:20]) - 5
    assert verified == [shard_files(made)[0].name]
    stream[:], stream[:]
    assert verified == [path.name for path in shard_files(made)]


def test_several_processes_write_the_same_bytes(tmp_path: Path) -> None:
    alone = content(tokenise(recipe_of(CORPUS)).folder)
    shutil.rmtree(tmp_path / "cache")
    assert content(tokenise(recipe_of(CORPUS), workers=3).folder) == alone


def dies_within(where: str, after: int, workers: int) -> None:
    """In a process of its own: SIGKILL with half of something written."""
    calls = 0

    def killed(inner: Callable, half: Callable) -> Callable:
        def call(*given: object) -> None:
            nonlocal calls
            calls += 1
            if calls == after:
                half(*given)
                os.kill(os.getpid(), signal.SIGKILL)
            inner(*given)

        return call

    def half_a_shard(path: Path, data: bytes) -> None:
        path.with_name(f".part-{os.getpid()}-{path.name}").write_bytes(data[: len(data) // 2])

    def half_a_line(journal: Journal, entry: dict) -> None:
        with journal.path.open("ab") as file:
            file.write(b'{"index": 2, "spl')

    if where == "shard":
        encoding.write_atomically = killed(encoding.write_atomically, half_a_shard)
    else:
        Journal.append = killed(Journal.append, half_a_line)
    tokenise(recipe_of(CORPUS), workers=workers)


@pytest.mark.parametrize(
    ("where", "after", "workers", "entered"),
    [("shard", 1, 1, 0), ("shard", 8, 1, 2), ("journal", 3, 1, 2), ("journal", 3, 2, 2)],
)
def test_a_killed_process_leaves_nothing_that_is_loaded_and_the_next_ends_the_same(
    where: str, after: int, workers: int, entered: int, tmp_path: Path
) -> None:
    uninterrupted = content(tokenise(recipe_of(CORPUS)).folder)
    shutil.rmtree(tmp_path / "cache")
    process = multiprocessing.get_context("fork").Process(target=dies_within, args=(where, after, workers))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    folder = recipe_of(CORPUS).folder()
    assert not (folder / MANIFEST).exists()
    assert [entry["index"] for entry in Journal(folder / "journal.jsonl").entries()] == list(range(entered))
    left = {path: path.stat().st_mtime_ns for path in folder.glob("*.bin") if int(path.name.split("-")[1]) < entered}
    made = tokenise(recipe_of(CORPUS))  # waits for the dead one's workers, which hold its lock until they end
    assert content(made.folder) == uninterrupted
    assert left == {path: path.stat().st_mtime_ns for path in left}  # what the journal has is not made twice


def test_text_that_changed_since_is_tokenised_from_there_on(tmp_path: Path) -> None:
    recipe = recipe_of(CORPUS)
    made = content(tokenise(recipe).folder)
    entries = json.loads(made[MANIFEST])["pieces"][:3]
    entries[1]["source"] = "other text"
    for name in list(made):
        if name == MANIFEST:
            (recipe.folder() / name).unlink()
    Journal(recipe.folder() / "journal.jsonl").restart(entries)
    assert content(tokenise(recipe).folder) == made


def test_an_open_ended_corpus_is_read_until_there_are_tokens_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    class Endless(Texts):
        def documents(self) -> object:
            for index in range(10**9):
                read.append(index)
                yield f"{index}: {some_texts(1, index % 7)[0]}"

    corpus = Endless((), "endless", open_ended=True)
    monkeypatch.setattr(text_data, "Recipe", partial(Recipe, piece_bytes=1500))
    data = TextData(corpus, ByteTokenizer(), length=64, batch_size=4, val_tokens=64, test_tokens=64, train_tokens=3200)
    data.prepare_data()
    assert len(read) < 100
    assert len({row.tobytes() for row in data.read_train(np.arange(1000))["tokens"]}) == 50
    few = [tokenise(recipe_of(corpus, tokens=4000), workers=workers).manifest for workers in (1, 3)]
    assert 4000 < few[0].totals("train")["tokens"] < 4000 + 2 * 1500


def test_the_rate_leaves_out_what_was_done_before(capsys: pytest.CaptureFixture) -> None:
    rate = Rate("texts", 10_000_000, "B", seconds=0.0)
    rate.skip(4_000_000)
    rate.add(1_000_000)
    rate.end()
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("texts: 5.0 of 10.0 MB tokenised, ") and line.endswith(" s left") for line in lines)
    speed = float(lines[-1].split(", ")[1].split()[0])
    assert rate.line().startswith("texts: 5.0") and speed > 0
