"""p-hop against a literal reading of its definition, its worked examples, and its splits."""

import numpy as np
import pytest

from ouro_lab.data.tasks import PHop

A, B, C, D = range(4)


def find(symbols: list[int], i: int) -> int:
    """find₁, one-based, as the paper writes it."""
    return max([0] + [j for j in range(2, i + 1) if symbols[j - 2] == symbols[i - 1]])


def hop(symbols: list[int], i: int, hops: int) -> int | None:
    for _ in range(hops):
        i = find(symbols, i) if i else 0
    return symbols[i - 1] if i else None


def test_worked_example() -> None:
    """abcadcba: the last earlier a is at 4, so hop₁ = d; no earlier d, so two hops are undefined."""
    task = PHop(length=8, hops=2)
    symbols = np.array([[A, B, C, A, D, C, B, A]] * 2)
    last = task.targets(symbols, np.array([1, 2]))[:, -1]
    assert last.tolist() == [D, task.undefined]


def test_targets_are_the_definition_at_every_position() -> None:
    task = PHop(length=20, hops=5)
    arrays = task.sample(3, np.arange(60))
    assert (arrays["targets"][:, 0] == -100).all()
    for tokens, targets in zip(arrays["tokens"].tolist(), arrays["targets"].tolist(), strict=True):
        hops, symbols = tokens[0] - task.alphabet + 1, tokens[1:]
        expected = [hop(symbols, i, hops) for i in range(1, 21)]
        assert targets[1:] == [task.undefined if answer is None else answer for answer in expected]


def test_tokens_are_well_formed() -> None:
    task = PHop()
    arrays = task.sample(0, np.arange(4000))
    tokens = arrays["tokens"]
    assert tokens.shape == (4000, 49) == (4000, task.sequence_length)
    assert task.vocab_size == 13
    assert arrays["targets"].max() == task.undefined == 12
    assert (tokens[:, 1:] < 4).all()
    assert (np.diff(tokens[:, 1:]) != 0).all()
    assert np.bincount(tokens[:, 0] - 4, minlength=8).min() > 400  # hop counts uniform
    assert np.bincount(tokens[:, 1]).min() > 850  # first symbols too
    assert abs(arrays["group"] - (tokens[:, 0] - 4)).max() <= 8
    assert arrays["scored"][:, -1].all()
    assert not arrays["scored"][:, :-1].any()


def test_undefined_shares_match_the_literature() -> None:
    """Length 100, four symbols: "~" at 4, 13, 25, 49 % of positions for 1, 4, 8, 16 hops, hardly ever at the last."""
    task = PHop(length=100, hops=16)
    symbols = task.sample(0, np.arange(400))["tokens"][:, 1:]
    undefined = [task.targets(symbols, np.full(400, p)) == task.undefined for p in (1, 4, 8, 16)]
    assert [rows.mean() for rows in undefined] == pytest.approx([0.04, 0.13, 0.25, 0.49], abs=0.012)
    assert max(rows[:, -1].mean() for rows in undefined) < 0.02


def test_a_sample_is_a_function_of_seed_and_index() -> None:
    task = PHop()
    whole = task.sample(1, np.arange(100))
    part = PHop().sample(1, np.array([70, 3]))
    for key in whole:
        assert (whole[key][[70, 3]] == part[key]).all()
    assert (task.sample(2, np.arange(100))["tokens"] != whole["tokens"]).any(axis=1).all()


def test_splits_share_no_symbols_even_where_there_are_few() -> None:
    task = PHop(alphabet=3, length=8, hops=2)  # 384 sequences in all
    seen = {split: set() for split in ("train", "val", "test")}
    for tokens in (task.sample(seed, np.arange(2000))["tokens"] for seed in range(3)):
        seen["train"] |= {tuple(row) for row in tokens[:, 1:].tolist()}
    for split in ("val", "test"):
        seen[split] = {tuple(row) for row in task.evaluation(split, 200)["tokens"][:, 1:].tolist()}
    assert len(seen["train"]) > 200
    assert seen["val"]
    assert seen["test"]
    assert not (seen["train"] & seen["val"] or seen["train"] & seen["test"] or seen["val"] & seen["test"])


def test_evaluation_holds_size_answers_per_hop_count_and_the_rest_apart() -> None:
    task = PHop(length=30)
    arrays = task.evaluation("val", 100)
    counts = np.bincount(arrays["group"], minlength=9)
    assert counts[:8].tolist() == [100] * 8
    assert counts[8] > 0
    last = arrays["targets"][:, -1]
    assert ((last == task.undefined) == (arrays["group"] == 8)).all()
    answered = arrays["group"] < 8
    assert (arrays["group"][answered] == arrays["tokens"][answered, 0] - 4).all()


def test_floors_beat_chance_and_cannot_be_reached_by_memory() -> None:
    floors = PHop().floors()
    assert set(floors) == {"accuracy", *(f"accuracy/hops_{p}" for p in range(1, 9))}
    assert 0.27 < floors["accuracy/hops_8"]["value"] < 0.33
    assert floors["accuracy/hops_1"]["value"] > 0.6  # xyx: the last three symbols often hold the answer
    assert "symbol" in str(floors["accuracy/hops_8"]["what"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alphabet": 2}, r"alphabet = 2: must be an integer from 3 to 1000"),
        ({"hops": 0}, r"hops = 0: must be an integer from 1 to 64"),
        ({"hops": 8, "length": 9}, r"length = 9: must be an integer ≥ 10"),
        ({"length": 4.5}, r"length = 4.5: must be an integer ≥ 10"),
    ],
)
def test_bad_values_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PHop(**arguments)


def test_a_length_that_hardly_ever_has_an_answer_is_named() -> None:
    with pytest.raises(ValueError, match=r"length = 30: 15 hops are hardly ever defined"):
        PHop(length=30, hops=15).evaluation("val", 50)
