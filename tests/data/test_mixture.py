"""Mixtures: exact proportions for any weights, and samples that depend on their index alone."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_support import Texts, some_texts

from ouro_lab.data import BPETokenizer, ByteTokenizer, Mixture, TextData, text_cache
from ouro_lab.data.mixture import Schedule, apportion
from ouro_lab.data.sampler import MicroBatches, Slice

SIZES = {"long": 60, "short": 12, "middle": 30}
WEIGHTS = {"long": 0.5, "short": 0.15, "middle": 0.35}


def mixture(weights: dict = WEIGHTS) -> Mixture:
    corpora = {name: Texts(some_texts(size, seed), name) for seed, (name, size) in enumerate(SIZES.items(), start=1)}
    return Mixture(corpora, weights)


def made(**options: object) -> TextData:
    chosen = {"length": 16, "batch_size": 8, "val_tokens": 64, "holdout": 4, "eval_batch_size": 5} | options
    data = TextData(chosen.pop("corpus", mixture()), chosen.pop("tokenizer", ByteTokenizer()), **chosen)
    data.prepare_data()
    return data


def strays_less_than_one(shares: list[Fraction]) -> None:
    """Counted sample by sample in whole numbers, over more than two periods."""
    schedule = Schedule(shares)
    which, own = schedule(np.arange(2 * schedule.period + 3))
    for source, share in enumerate(shares):
        mine = which == source
        had = np.cumsum(mine)
        due = np.arange(1, len(had) + 1) * share.numerator
        assert (np.abs(had * share.denominator - due) < share.denominator).all()
        assert own[mine].tolist() == list(range(int(had[-1])))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.integers(1, 5), st.integers(1, 300)), min_size=1, max_size=9))
def test_after_n_samples_every_source_is_within_one_of_its_share(parts: list[int]) -> None:
    strays_less_than_one([Fraction(part, sum(parts)) for part in parts])


@pytest.mark.parametrize("weights", [(0.1, 0.2, 0.7), (1, 999), (0.333, 0.333, 0.334), (73.4, 13.0, 7.5, 4.1, 2.0)])
def test_decimals_are_taken_as_written(weights: tuple[float, ...]) -> None:
    names = [f"s{i}" for i in range(len(weights))]
    mixed = Mixture({name: Texts(["x"], name) for name in names}, dict(zip(names, weights, strict=True)))
    exact = [Fraction(str(weight)) for weight in weights]
    assert mixed.shares == [weight / sum(exact) for weight in exact]
    strays_less_than_one(mixed.shares)


def test_a_sample_far_out_needs_none_before_it() -> None:
    schedule = Schedule([Fraction(3, 7), Fraction(3, 7), Fraction(1, 7)])
    which, own = schedule(np.arange(21))
    far = 7 * 10**12
    assert (schedule(np.arange(21) + far)[0] == which).all()
    assert (schedule(np.array([far]))[1] == own[0] + schedule.counts[which[0]] * 10**12).all()


@given(st.integers(0, 10_000), st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_apportioned_parts_add_up(total: int, parts: list[int]) -> None:
    shares = [Fraction(part, sum(parts)) for part in parts]
    given_parts = apportion(total, shares)
    assert sum(given_parts) == total
    assert all(abs(part - total * share) < 1 for part, share in zip(given_parts, shares, strict=True))


def source_of(row: np.ndarray, data: TextData, name: str) -> bool:
    stream = data.sources[data.groups.index(name)].rows["train"].stream[:]
    windows = np.lib.stride_tricks.sliding_window_view(stream, len(row))
    return bool((windows == row).all(axis=1).any())


def test_rows_come_from_the_scheduled_source_in_its_own_epochs() -> None:
    data = made(length=48)
    which, _ = data.schedule(np.arange(400))
    tokens = data.read_train(np.arange(400))["tokens"]
    for i in range(0, 400, 23):
        assert [source_of(tokens[i], data, name) for name in data.groups] == [s == which[i] for s in range(3)]
    short = data.sources[1]
    rows = tokens[which == 1]
    held = short.rows["train"].full
    assert len(rows) > 2 * held  # a small source begins its third epoch while the large one is in its first
    for epoch in (0, 1):
        part = rows[epoch * held : (epoch + 1) * held]
        assert sorted(map(bytes, part.astype(np.uint8))) == sorted(
            bytes(short.rows["train"].read(np.array([r]))["tokens"][0].astype(np.uint8)) for r in range(held)
        )
    assert (rows[:held] != rows[held : 2 * held]).any()
    assert (made(length=48, seed=1).read_train(np.arange(400))["tokens"] != tokens).any()


def test_world_size_and_micro_batches_only_cut_the_global_batch() -> None:
    data = made()
    for step in (0, 3):
        whole = data.read_train(np.arange(8 * step, 8 * step + 8))["tokens"]
        for world, accumulate in ((1, 1), (2, 1), (4, 1), (2, 2)):
            parts = [
                MicroBatches(made().read_train, Slice(8, world, rank, accumulate))[step * accumulate + micro]["tokens"]
                for micro in range(accumulate)
                for rank in range(world)
            ]
            assert (torch.cat(parts).numpy() == whole).all()


def test_a_resumed_run_reads_what_an_uninterrupted_one_does_from_every_step() -> None:
    data = made()
    reader = MicroBatches(data.read_train, Slice(8))
    uninterrupted = [reader[step] for step in range(20)]
    for start in range(20):
        resumed = MicroBatches(data.read_train, Slice(8))
        for step in range(start, min(start + 3, 20)):
            batch = resumed[step]
            assert all(torch.equal(batch[key], uninterrupted[step][key]) for key in batch)


def test_held_out_sets_are_those_of_each_source_alone_and_name_it() -> None:
    data = made()
    batches = list(data.test_dataloader())
    group = torch.cat([batch["group"] for batch in batches])
    for index, corpus in enumerate(data.corpora):
        alone = made(corpus=corpus)
        for key in ("tokens", "targets", "documents", "bytes"):
            expected = torch.cat([batch[key] for batch in alone.test_dataloader()])
            assert torch.equal(torch.cat([batch[key] for batch in batches])[group == index], expected)
    assert data.evaluation_size("val") == 3 * 4  # 64 targets of each source


def test_bits_per_byte_and_floors_are_told_of_each_source() -> None:
    data = made()
    assert set(data.metric_names) >= {"bits_per_byte", *(f"bits_per_byte/{name}" for name in SIZES)}
    metrics = data.metrics(loops=2)
    for batch in data.test_dataloader():
        nats = torch.stack([torch.full(batch["targets"].shape, float(loop)) for loop in (4, 2)])
        nats = nats * (1 + batch["group"][:, None])
        metrics.update(batch, nats, torch.zeros(nats.shape, dtype=torch.bool))
    values = {name: float(value) for name, value in metrics.compute().items()}
    floors = data.floors()
    for index, (name, corpus) in enumerate(zip(data.groups, data.corpora, strict=True)):
        scored = [b[key] for b in made(corpus=corpus).test_dataloader() for key in ("targets", "bytes")]
        count = sum(int((t != -100).sum()) for t in scored[::2]) / sum(int(b.sum()) for b in scored[1::2])
        for loop, nats in ((1, 4), (2, 2)):
            expected = nats * (1 + index) * count / math.log(2)
            assert values[f"bits_per_byte_loop{loop}/{name}"] == pytest.approx(expected)
        assert values[f"bits_per_byte/{name}"] == values[f"bits_per_byte_loop2/{name}"]
        alone = made(corpus=corpus).floors()["bits_per_byte"]["value"]
        assert floors[f"bits_per_byte/{name}"]["value"] == pytest.approx(alone)
    low, high = sorted(floors[f"bits_per_byte/{name}"]["value"] for name in SIZES)[:: len(SIZES) - 1]
    assert low < floors["bits_per_byte"]["value"] < high


def test_unique_tokens_are_shared_out() -> None:
    data = made(train_tokens=480)
    unique = [{row.tobytes() for row in source.train.read(np.arange(100))["tokens"]} for source in data.sources]
    assert [len(rows) for rows in unique] == [480 * 50 // 100 // 16, 480 * 15 // 100 // 16, 480 * 35 // 100 // 16]
    with pytest.raises(ValueError, match=r"^train_tokens = 40000: must be at most \d+, what long has"):
        made(train_tokens=40_000)
    with pytest.raises(ValueError, match=r"^train_tokens = 128: must be at least 1600, for tiny"):
        corpora = {"big": Texts(some_texts(40)), "tiny": Texts(some_texts(40, 5))}
        made(corpus=Mixture(corpora, {"big": 99, "tiny": 1}), train_tokens=128)


def test_the_tokenizer_sees_sources_by_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    train = BPETokenizer.train
    monkeypatch.setattr(BPETokenizer, "train", lambda self, texts: train(self, seen.extend(texts) or seen))
    made(tokenizer=BPETokenizer(300))
    given_bytes = {seed: sum(len(t.encode()) for t in seen if t.startswith(f"{seed}.")) for seed in (1, 2, 3)}
    longest = max(len(t.encode()) for t in seen)
    whole = sum(given_bytes.values())
    for seed, weight in enumerate(WEIGHTS.values(), start=1):
        assert abs(given_bytes[seed] - whole * weight) < 2 * longest
    assert not any(int(t.split(":")[0].split(".")[1]) % 4 > 1 for t in seen)  # nothing held out
    monkeypatch.setattr(text_cache, "LEARN_BYTES", 1 << 20)
    before = len(seen)
    made(tokenizer=BPETokenizer(300))
    assert len(seen) == before  # restored


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"long": 1, "short": 1}, r"^weights = .*: must name the sources long, short, middle, each once"),
        ({"long": 1, "short": 0, "middle": 1}, r"^weights.short = 0: must be a number above 0"),
        ({"long": 1, "short": math.nan, "middle": 1}, r"^weights.short = nan: must be a number above 0"),
        ({"long": 1, "short": True, "middle": 1}, r"^weights.short = True: must be a number above 0"),
        (
            {"long": 1 / 3, "short": 1 / 3, "middle": 0.3},
            r"must be parts of at most 100,000; for example .*'long': 345",
        ),
    ],
)
def test_bad_weights_are_named(weights: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        mixture(weights)
    assert "\n" not in str(caught.value)


def test_a_source_without_a_whole_row_is_named(tmp_path: Path) -> None:
    corpora = {"big": Texts(some_texts(40)), "tiny": Texts([f"tiny {i}" for i in range(4)])}
    with pytest.raises(ValueError, match=r"^length = 64: more tokens than corpus tiny has in training"):
        made(corpus=Mixture(corpora, {"big": 1, "tiny": 1}), length=64)
