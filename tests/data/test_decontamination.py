"""Decontamination: a shared 13-gram takes a training document out, nothing else does, and the report says so."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_support import Texts, some_texts

from ouro_lab.data import BPETokenizer, ByteTokenizer, Decontamination, TextData
from ouro_lab.data.decontamination import Overlap

PLANTED = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu"]
QUESTIONS = [f"What is this? {' '.join(PLANTED)} omicron pi.", "too short"]


def made(train: list[str], tokenizer: object = None, **options: object) -> TextData:
    rest = some_texts(40)
    texts = [text for i in range(0, 40, 2) for text in (train.pop(0) if train else rest[i], rest[i + 1])]
    against = options.pop(
        "against", {"exam": Texts(QUESTIONS, "exam"), "other": Texts(["nothing of it here"], "other")}
    )
    decontaminate = Decontamination(against) if against else None
    corpus = options.pop("corpus", Texts(texts))
    data = TextData(
        corpus, tokenizer or ByteTokenizer(), length=32, batch_size=2, decontaminate=decontaminate, holdout=20
    )
    data.prepare_data()
    return data


def report_of(data: TextData) -> dict:
    return json.loads((data.sources[0].shards.folder / "decontamination.json").read_text())


def test_a_planted_ngram_is_found_and_nothing_else(capsys: pytest.CaptureFixture) -> None:
    hidden = "It reads: " + ", ".join(word.upper() for word in PLANTED) + "! And more."  # no case, no punctuation
    near = ["Only twelve: " + " ".join(PLANTED[1:]), "Reversed: " + " ".join(PLANTED[::-1]), "too short"]
    data = made([hidden, *near])
    kept = list(data.sources[0].shards.texts("train"))
    assert hidden not in kept and all(text in kept for text in near)
    assert len(kept) == 40 - 2 - 2 - 1
    report = report_of(data)
    assert (report["n"], report["unit"], report["documents"], report["removed"]) == (13, "words", 36, 1)
    assert report["sets"]["exam"] == {"texts": 2, "shorter_than_n": 1, "ngrams": 6, "documents": 1, "matches": 1}
    assert report["sets"]["other"] == {"texts": 1, "shorter_than_n": 1, "ngrams": 0, "documents": 0, "matches": 0}
    (example,) = report["examples"]
    assert example == {"set": "exam", "document": hidden[:60], "ngram": " ".join(PLANTED)}
    printed = capsys.readouterr().out
    assert "texts: 1 of 36 training documents share 13 words in a row with evaluation text" in printed
    assert "(exam 1, other 0)" in printed


def test_held_out_documents_stay_and_the_cache_knows_the_sets() -> None:
    contaminated = " ".join(PLANTED)
    rest = some_texts(40)
    corpus = Texts([*rest[:18], f"val {contaminated}", f"test {contaminated}", *rest[18:]])
    clean, plain = made([], corpus=corpus), made([], corpus=corpus, against={})
    other = made([], corpus=corpus, against={"exam": Texts([*QUESTIONS, "more"], "exam")})
    assert len({data.sources[0].shards.folder for data in (clean, plain, other)}) == 3
    for split in ("val", "test"):
        assert list(clean.sources[0].shards.texts(split)) == list(plain.sources[0].shards.texts(split))
    assert not (plain.sources[0].shards.folder / "decontamination.json").exists()


def test_a_tokenizer_does_not_learn_what_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    train = BPETokenizer.train
    monkeypatch.setattr(BPETokenizer, "train", lambda self, texts: train(self, seen.extend(texts) or seen))
    data = made([f"Here {' '.join(PLANTED)}."], BPETokenizer(300))
    assert sorted(seen) == sorted(data.sources[0].shards.texts("train"))
    assert not any("epsilon" in text for text in seen)


def test_damaged_shards_are_made_again_without_what_was_taken_out() -> None:
    data = made([" ".join(PLANTED)])
    shards = data.sources[0].shards
    (path,) = shards.folder.glob("train-*.bin")
    before = path.read_bytes()
    path.write_bytes(before[:-2] + b"\0\0")
    assert shards.stream("train")[:].tobytes() == before


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=9), max_size=4),
    st.lists(st.lists(st.sampled_from("abcd"), max_size=12), max_size=5),
    st.integers(1, 4),
)
def test_matches_are_those_of_a_slow_search(evaluation: list[list[str]], texts: list[list[str]], n: int) -> None:
    overlap = Overlap({"set": [" ".join(words) for words in evaluation]}, n)
    grams = {tuple(words[i : i + n]) for words in evaluation for i in range(len(words) - n + 1)}
    for words in texts:
        slow = [i for i in range(len(words) - n + 1) if tuple(words[i : i + n]) in grams]
        (found,) = overlap.matches([" ".join(words)])
        assert found.get("set", np.array([])).tolist() == slow
    joined = [" ".join(words) for words in texts]
    together, alone = overlap.matches(joined), [overlap.matches([text])[0] for text in joined]
    assert [{k: v.tolist() for k, v in one.items()} for one in together] == [
        {k: v.tolist() for k, v in one.items()} for one in alone
    ]
    kept, found = overlap.clean(joined)
    assert found["removed"] == len(texts) - len(kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"against": {}}, r"^against = {}: must name at least one corpus"),
        ({"against": {"x": Texts(["a"])}, "n": 0}, r"^n = 0: must be an integer ≥ 1"),
    ],
)
def test_bad_settings_are_named(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Decontamination(**options)
