"""Corpora in object storage and on the hub: read once into shards, never without leave, refused in one line if bad."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from text_support import Texts, recipe_of, some_texts, streams_by_hand

from ouro_lab.data import BPETokenizer, HuggingFace, TextData, TextFiles
from ouro_lab.data.documents import split_documents
from ouro_lab.data.shards import MANIFEST
from ouro_lab.data.tokenise import tokenise

TEXTS = some_texts(60)


class Bucket(MemoryFileSystem):
    """A storage that counts as remote, as its protocol is none of this machine's."""

    protocol = "bucket"
    opened: list[str] = []
    store: dict = {}

    def _open(self, path: str, *rest: object, **options: object) -> object:
        if "rb" in (*rest, options.get("mode")):
            self.opened.append(path)
        return super()._open(path, *rest, **options)


fsspec.register_implementation("bucket", Bucket, clobber=True)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OURO_CACHE", str(tmp_path / "cache"))
    Bucket.store.clear()
    Bucket.opened.clear()
    yield
    MemoryFileSystem.store.clear()


def json_lines(texts: list[str], column: str = "text") -> bytes:
    return b"".join(json.dumps({column: text, "other": 1}).encode() + b"\n" for text in texts)


def put(url: str, data: bytes) -> None:
    with fsspec.open(url, "wb") as file:
        file.write(data)


def test_files_are_read_by_url_in_order_and_unpacked_by_suffix(tmp_path: Path) -> None:
    put("memory://docs/part-1.jsonl.gz", gzip.compress(json_lines(TEXTS[30:])))
    put("memory://docs/part-0.jsonl", json_lines(TEXTS[:30]))
    assert list(TextFiles("memory://docs/part-*").documents()) == TEXTS
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("one\n\ntwo é".encode()))
    for path in (str(tmp_path / "a.txt.gz"), f"file://{tmp_path}/a.txt.gz"):
        corpus = TextFiles(path, "paragraph")
        assert list(corpus.documents()) == ["one", "two é"]
        assert not corpus.remote and corpus.label == "a"
    put("memory://docs/body.jsonl", json_lines(TEXTS, "body"))
    assert list(TextFiles("memory://docs/body.jsonl", column="body").documents()) == TEXTS


def test_local_text_is_known_by_content_and_remote_text_by_its_url(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("same")
    one, other = (TextFiles(f"{tmp_path}/{folder}/*.txt").identity() for folder in ("one", "other"))
    assert one == other
    assert TextFiles(f"{tmp_path}/one/*.txt", "line").identity() != one
    assert TextFiles("bucket://x/*.txt").identity() == TextFiles("bucket://x/*.txt").identity()
    assert TextFiles("bucket://x/*.txt").identity() != TextFiles("bucket://y/*.txt").identity()


def test_a_remote_corpus_is_read_once_and_then_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    put("bucket://texts/all.jsonl", json_lines(TEXTS))
    corpus = TextFiles("bucket://texts/*.jsonl")
    assert corpus.remote and corpus.open_ended
    with pytest.raises(
        FileNotFoundError, match=r"^path = bucket://.*: cannot be loaded, HF_HUB_OFFLINE forbids"
    ) as bad:
        tokenise(recipe_of(corpus))
    assert "\n" not in str(bad.value) and Bucket.opened == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    options = {"length": 16, "batch_size": 2, "val_tokens": 16, "holdout": 4}
    data = TextData(corpus, BPETokenizer(300), **options)
    data.prepare_data()
    assert Bucket.opened
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Bucket.opened.clear()
    Bucket.store.clear()
    again = TextData(corpus, BPETokenizer(300), **options)
    again.prepare_data()
    again.floors()
    assert Bucket.opened == []
    assert again.sources[0].shards.folder == data.sources[0].shards.folder


def test_a_storage_without_its_package_or_files_is_one_line() -> None:
    cases = [
        ("nowhere://bucket/x", r"^path = nowhere://bucket/x: cannot be listed \(.*nowhere"),
        ("memory://none/*.txt", r"^path = memory://none/\*\.txt: no such file"),
    ]
    for url, message in cases:
        with pytest.raises(FileNotFoundError, match=message) as caught:
            TextFiles(url).size() or list(TextFiles(url)._files.open_all())
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"text": "good"}\n{"text": "cut\n', r"^path = .*bad\.jsonl: line 2 is no JSON object with 'text' \(Invalid"),
        (b'["text"]\n', r"^path = .*bad\.jsonl: line 1 is no JSON object with 'text'"),
        (b'{"body": "x"}\n', r"^path = .*bad\.jsonl: line 1 is no JSON object with 'text'"),
        (b'{"text": {"a": 1}}\n', r"^path = .*bad\.jsonl: line 1: 'text' must be a text, is dict"),
        (b'{"text": ' + b"[" * 200_000 + b"\n", r"^path = .*bad\.jsonl: line 1 is no JSON object"),
        (b'{"text": "\\ud800"}\n', r"^corpus = bad: document 1 is no Unicode text"),
        (b"\xff\xfe", r"^path = .*bad\.jsonl: cannot be read as UTF-8 text"),
    ],
)
def test_hostile_lines_are_refused_in_one_line_and_nothing_is_kept(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(data)
    recipe = recipe_of(TextFiles(str(path)))
    with pytest.raises(ValueError, match=message) as caught:
        tokenise(recipe)
    assert "\n" not in str(caught.value)
    assert not (recipe.folder() / MANIFEST).exists() and not list(recipe.folder().glob("*.bin"))


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_broken_compression_is_refused_in_one_line(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"cut.txt.{suffix}"
    path.write_bytes(gzip.compress(b"text " * 1000)[:40])
    with pytest.raises(ValueError, match=rf"^path = .*cut\.txt\.{suffix}: cannot be read as UTF-8 text") as caught:
        list(TextFiles(str(path)).documents())
    assert "\n" not in str(caught.value)


def test_a_local_dataset_is_streamed_to_the_same_shards_as_its_text(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "rows.jsonl").write_bytes(json_lines(TEXTS, "body"))
    corpus = HuggingFace(str(folder), column="body")
    stream = tokenise(recipe_of(corpus)).stream("train")
    assert stream[:].tolist() == streams_by_hand(Texts(TEXTS), 4)["train"]
    assert len(list(split_documents(HuggingFace(str(folder), column="body", first=7), 4))) == 7
    (folder / "rows.jsonl").write_bytes(json_lines(TEXTS[1:], "body"))
    assert corpus.identity() != HuggingFace(str(folder)).identity()
    (folder / "rows.jsonl").write_text('{"body": "x"}\n{"body": ')
    with pytest.raises(FileNotFoundError, match=r"^name = .*set: cannot be loaded by `datasets` \(") as caught:
        list(corpus.documents())
    assert "\n" not in str(caught.value)


def test_a_dataset_with_a_script_is_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(FileNotFoundError, match=r"^name = .*evil: cannot be loaded"):
        list(HuggingFace(str(folder)).documents())
    assert not (tmp_path / "ran").exists()
