"""`TextData`: what is packed, ordered, masked and scored, its cache, and its floor."""

import json
import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from ouro_lab.data import BPETokenizer, ByteTokenizer, TextData, TextFiles
from ouro_lab.data.packing import PackedRows, ShuffledRows
from ouro_lab.data.text_cache import made_once
from ouro_lab.data.text_data import Source

WORDS = ["union", "state", "of", "the", "people", "congress", "war", "peace", "and", "law", "year", "our", "this"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
    for index in range(40):
        text = " ".join(rng.choice(WORDS, rng.integers(20, 90)))
        (root / f"{index:02d}.txt").write_text(f"Message {index} — {text}.", "utf-8")
    return root


def made(folder: Path, tokenizer: object = None, **options: object) -> TextData:
    settings = {"length": 32, "batch_size": 8, "eval_batch_size": 5, "val_tokens": None} | options
    return TextData(TextFiles(f"{folder}/*.txt"), tokenizer or ByteTokenizer(), **settings)


def only(data: TextData) -> Source:
    data.prepare_data()
    (source,) = data.sources
    return source


def expected_texts(folder: Path, rest: int) -> list[str]:
    return [path.read_text("utf-8") for path in sorted(folder.glob("*.txt")) if int(path.stem) % 10 == rest]


def test_every_test_byte_is_scored_once_and_ends_cost_no_bytes(folder: Path) -> None:
    texts = expected_texts(folder, 9)
    for tokenizer in (ByteTokenizer(), BPETokenizer(300)):
        data = made(folder, tokenizer)
        batches = list(data.test_dataloader())
        targets = torch.cat([batch["targets"].flatten() for batch in batches])
        targets = targets[targets != -100]
        ends = (targets == tokenizer.eos).nonzero().flatten()
        pieces = torch.tensor_split(targets, ends + 1)[:-1]
        assert [tokenizer.decode(piece.tolist()) for piece in pieces] == texts
        assert sum(int(batch["bytes"].sum()) for batch in batches) == sum(len(text.encode()) for text in texts)
        for batch in batches:
            assert (batch["bytes"][batch["targets"] == -100] == 0).all()
            assert (batch["tokens"][:, 1:] == batch["targets"][:, :-1])[batch["targets"][:, :-1] != -100].all()


def test_documents_separate_what_eos_opens() -> None:
    stream = np.array([9, 1, 2, 9, 3, 9, 4, 5, 6, 9], np.uint16)
    rows = PackedRows(stream, 4, eos=9, mask_documents=True)
    arrays = rows.read(np.arange(rows.all))
    assert arrays["tokens"].tolist() == [[9, 1, 2, 9], [3, 9, 4, 5], [6, 9, 9, 9]]
    assert arrays["targets"].tolist() == [[1, 2, 9, 3], [9, 4, 5, 6], [9, -100, -100, -100]]
    assert arrays["documents"].tolist() == [[1, 1, 1, 2], [0, 1, 1, 1], [0, 1, 2, 3]]
    assert "documents" not in PackedRows(stream, 4, eos=9, mask_documents=False).read(np.arange(2))
    assert (rows.full, rows.all) == (2, 3)


def test_an_epoch_is_a_permutation_given_by_seed_and_epoch() -> None:
    rows = PackedRows(np.arange(101, dtype=np.uint16), 10, eos=200, mask_documents=False)
    orders = {}
    for seed in (0, 1):
        read = ShuffledRows(rows, seed).read(np.arange(20))["tokens"][:, 0]
        for epoch in (0, 1):
            orders[seed, epoch] = tuple(read[10 * epoch : 10 * epoch + 10].tolist())
            assert sorted(orders[seed, epoch]) == list(range(0, 100, 10))
    assert len(set(orders.values())) == 4
    late = ShuffledRows(rows, 1).read(np.array([13, 9]))["tokens"][:, 0]  # the same without what came before
    assert late.tolist() == [orders[1, 1][3], orders[1, 0][9]]


def test_a_part_of_the_rows_is_repeated_in_every_epoch_whatever_the_seed() -> None:
    rows = PackedRows(np.arange(101, dtype=np.uint16), 10, eos=200, mask_documents=False)
    orders = []
    for seed in (1, 2):
        read = ShuffledRows(rows, seed, count=4).read(np.arange(8))["tokens"][:, 0].tolist()
        assert sorted(read[:4]) == sorted(read[4:]) == [0, 20, 50, 70]  # spread over the stream
        orders.append(read)
    assert orders[0] != orders[1]
    every = np.arange(20)
    assert (ShuffledRows(rows, 1, count=10).read(every)["tokens"] == ShuffledRows(rows, 1).read(every)["tokens"]).all()


def test_unique_tokens_are_those_asked_for(folder: Path) -> None:
    data = made(folder, train_tokens=512)
    data.prepare_data()
    seen = {row.tobytes() for row in data.read_train(np.arange(200))["tokens"]}
    assert len(seen) == 512 // 32
    with pytest.raises(ValueError, match=r"^train_tokens = 10000000: must be at most \d+, what "):
        made(folder, train_tokens=10_000_000).prepare_data()


def test_capped_sets_are_spread_over_the_split(folder: Path) -> None:
    whole, capped = made(folder), made(folder, test_tokens=96)
    count = only(whole).rows["test"].all
    assert (whole.evaluation_size("test"), capped.evaluation_size("test")) == (count, 3)
    assert only(capped).chosen["test"].tolist() == [0, count // 3, 2 * count // 3]


def test_the_tokens_of_a_stated_set_are_known_without_reading_the_corpus(folder: Path) -> None:
    stated, whole = made(folder, test_tokens=100), made(folder, test_tokens=None)
    assert stated.evaluation_tokens("test") == 96  # rows of 32
    assert stated.sources == []
    stated.prepare_data()
    assert stated.evaluation_tokens("test") == 96
    assert whole.evaluation_tokens("test") == 32 * sum(len(source.chosen["test"]) for source in whole.sources)


def test_fixed_sets_depend_on_no_seed_and_training_does(folder: Path) -> None:
    one, other = made(folder, seed=0), made(folder, seed=1)
    for a, b in zip(one.val_dataloader(), other.val_dataloader(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert (one.read_train(np.arange(8))["tokens"] != other.read_train(np.arange(8))["tokens"]).any()


def test_floor_is_the_same_for_all_tokenizers_and_stored(folder: Path) -> None:
    data = made(folder)
    test_bytes = [text.encode() for text in expected_texts(folder, 9)]
    floor = data.floors()["bits_per_byte"]
    assert floor["what"] == "byte 5-gram, interpolated Kneser-Ney, same text"
    assert 0.5 < floor["value"] < 2
    assert made(folder, BPETokenizer(300)).floors()["bits_per_byte"]["value"] == pytest.approx(floor["value"])
    folder = only(data).shards.folder
    (stored,) = [json.loads(path.read_text()) for path in folder.parent.glob(f"{folder.name}-floor-*/floor.json")]
    assert stored == {"bits": floor["value"] * stored["bytes"], "bytes": sum(map(len, test_bytes))}


def test_floor_of_capped_rows_covers_their_bytes_only(folder: Path) -> None:
    """By hand: the 5-gram's nats at the targets of the chosen rows."""
    from ouro_lab.data.ngram import NGram, symbols

    data = made(folder, test_tokens=64)
    value = data.floors()["bits_per_byte"]["value"]
    train = [t for rest in range(8) for t in expected_texts(folder, rest)]
    order = [path.read_text("utf-8") for path in sorted(folder.glob("*.txt")) if int(path.stem) % 10 < 8]
    assert sorted(order) == sorted(train)
    stream = symbols(expected_texts(folder, 9))
    nats = NGram(symbols(order)).nats(stream)
    places = np.concatenate([np.arange(32 * row + 1, 32 * row + 33) for row in only(data).chosen["test"]])
    places = places[places < len(stream)]
    expected = nats[places].sum() / math.log(2) / (stream[places] != 256).sum()
    assert value == pytest.approx(expected)


def test_cache_is_reused_and_keyed_by_text_and_tokenizer(folder: Path, tmp_path: Path) -> None:
    first = only(made(folder)).shards
    files = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    again = only(made(folder, length=16)).shards
    assert again.folder == first.folder
    assert {path: path.stat().st_mtime_ns for path in again.folder.iterdir()} == files
    other = only(made(folder, BPETokenizer(300))).shards
    for path in folder.glob("*.txt"):
        (tmp_path / path.name).write_text(path.read_text("utf-8") + "!", "utf-8")
    changed = only(made(tmp_path)).shards
    assert len({first.folder, other.folder, changed.folder}) == 3
    assert first.manifest.totals("test")["documents"] == 4
    assert first.manifest.dtype == np.uint16


def test_one_of_many_makes_a_cache_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    made_by: list[int] = []

    def write(target: Path) -> None:
        made_by.append(1)
        (target / "x").write_text("x")

    threads = [threading.Thread(target=made_once, args=(tmp_path / "c", write)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made_by) == 1

    def fail(target: Path) -> None:
        (target / "half").write_text("")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        made_once(tmp_path / "d", fail)
    assert not (tmp_path / "d").exists()
    assert not list(tmp_path.glob(".making-*"))


def test_a_batch_that_packing_cannot_fill_is_named(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"batch_size = 9999: a batch that packing cannot fill; .* length = 32"
    ) as caught:
        made(folder, batch_size=9999).prepare_data()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 1}, r"length = 1: must be an integer ≥ 2"),
        ({"holdout": 2}, r"holdout = 2: must be an integer ≥ 3"),
        ({"test_tokens": 5}, r"test_tokens = 5: must be an integer ≥ 32"),
    ],
)
def test_bad_values_are_named(folder: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(folder, **options)


def test_contract_of_a_datamodule(folder: Path) -> None:
    data = made(folder)
    assert (data.vocab_size, data.length, data.batch_size, data.groups) == (257, 32, 8, ())
    batch = next(iter(data.val_dataloader()))
    assert {key: tuple(value.shape) for key, value in batch.items()} == dict.fromkeys(
        ("tokens", "targets", "documents", "bytes"), (5, 32)
    )
    assert all(value.dtype == torch.int64 for value in batch.values())
    uniform = torch.full((1, 5, 32), math.log(257))
    metrics = data.metrics(loops=1)
    metrics.update(batch, uniform, torch.zeros(1, 5, 32, dtype=torch.bool))
    ends = int((batch["targets"] == 256).sum())
    assert float(metrics.compute()["bits_per_byte"]) == pytest.approx(math.log2(257) * 160 / (160 - ends))
