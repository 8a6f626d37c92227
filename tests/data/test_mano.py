"""Mano against a recursive reading of its grammar, its worked examples, its splits, and floors by enumeration."""

from collections import defaultdict
from itertools import product

import numpy as np
import pytest

from ouro_lab.data.tasks import Mano, expressions

SIGNS = "+-*"


def symbols(text: str, modulus: int, slots: int) -> np.ndarray:
    read = [modulus + SIGNS.index(word) if word in SIGNS else int(word) for word in text.split()]
    return np.array([read + [modulus + expressions.BLANK] * (slots - len(read))])


def parse(row: list[int], modulus: int) -> tuple[int, int, int]:
    """Value, depth and symbols read of the expression that `row` begins with."""
    if row[0] < modulus:
        return row[0], 0, 1
    left, a, n = parse(row[1:], modulus)
    right, b, k = parse(row[1 + n :], modulus)
    value = (left + right, left - right, left * right)[row[0] - modulus] % modulus
    return value, 1 + max(a, b), 1 + n + k


@pytest.mark.parametrize(
    ("text", "answer"),
    [("- * 3 4 + 5 6", 1), ("* - 2 5 + 20 9", 5), ("+ * 2 3 - 4 5", 5), ("- * 2 3 + 4 5", 20), ("7", 7)],
)
def test_worked_examples(text: str, answer: int) -> None:
    """tasks.md §0.4, and trap 12: `- * a b + c d` is (a·b) − (c+d), not (a·b) + (c−d)."""
    value, depth = expressions.solve(symbols(text, 23, 9), 23)
    assert value.tolist() == [answer]
    assert depth.tolist() == [2 if len(text) > 1 else 0]


def test_a_row_is_the_published_sequence() -> None:
    """`<bos> <len_3> expression <ans> y`, 2ℓ + 5 tokens."""
    task = Mano(modulus=23, operators=4)
    tokens = task.encode(symbols("- * 3 4 + 5 6", 23, 9), np.array([3]), np.array([1]))[0].tolist()
    length_3 = 23 + 3 + 2
    assert tokens[:11] == [task.bos, length_3, 24, 25, 3, 4, 23, 5, 6, task.ans, 1]
    assert tokens[11:] == [task.bos] * 2
    assert task.vocab_size == 23 + 3 + 4 + 2
    assert task.sequence_length == 2 * 4 + 4


@pytest.mark.parametrize(("modulus", "operators"), [(5, 4), (23, 10)])
def test_samples_are_expressions_with_their_answers(modulus: int, operators: int) -> None:
    task = Mano(modulus, operators)
    arrays = task.sample(0, np.arange(300))
    columns = [arrays[key].tolist() for key in ("tokens", "targets", "scored", "group")]
    for tokens, targets, scored, group in zip(*columns, strict=True):
        count = tokens[1] - modulus - 2
        value, depth, read = parse(tokens[2:], modulus)
        assert read == 2 * count + 1
        assert tokens[2 + read] == task.ans
        assert [(i, t) for i, t in enumerate(targets) if t != -100] == [(2 + read, value)]
        assert [i for i, s in enumerate(scored) if s] == [2 + read]
        assert [task.groups[g] for g in group] == [f"ops_{count}", f"depth_{depth}"]


def test_the_sampler_follows_the_grammar() -> None:
    """Numbers of operators, left sizes, operators and values uniform; mean depths and zeros as tasks.md §3 has them."""
    task = Mano(modulus=23, operators=6)
    arrays = task.sample(0, np.arange(40_000))
    counts = arrays["tokens"][:, 1] - 25
    assert np.bincount(counts)[1:] / len(counts) == pytest.approx([1 / 6] * 6, abs=0.01)
    largest = arrays["tokens"][counts == 6]
    assert np.bincount(largest[:, 2] - 23) / len(largest) == pytest.approx([1 / 3] * 3, abs=0.02)
    assert np.bincount(largest[:, 14], minlength=23) / len(largest) == pytest.approx([1 / 23] * 23, abs=0.01)
    left = [(parse(row[3:], 23)[2] - 1) // 2 for row in largest.tolist()]
    assert np.bincount(left) / len(left) == pytest.approx([1 / 6] * 6, abs=0.02)
    depth = arrays["group"][counts == 6, 1] - 5
    assert depth.mean() == pytest.approx(4.27, abs=0.05)
    assert (arrays["targets"].max(1)[counts == 6] == 0).mean() == pytest.approx(0.0679, abs=0.01)


def test_odds_are_those_of_the_literature() -> None:
    """tasks.md §3: q_ℓ for three moduli, and mean and 95 % of tree depth."""
    at = [1, 4, 6, 10, 16, 24]
    stated = {
        23: [0.0573, 0.0658, 0.0679, 0.0703, 0.0721, 0.0735],
        7: [0.184, 0.206, 0.211, 0.217, 0.222, 0.226],
        5: [0.253, 0.280, 0.287, 0.294, 0.300, 0.304],
    }
    for modulus, zero in stated.items():
        odds = expressions.odds(modulus, 24)
        assert odds.zero.sum(axis=1)[at] == pytest.approx(zero, abs=6e-4)
        assert odds.depth.sum(axis=1) == pytest.approx(np.ones(25))
    means = odds.depth @ np.arange(25)
    assert means[[6, 10, 13, 16, 24]] == pytest.approx([4.3, 5.6, 6.4, 7.0, 8.3], abs=0.05)
    assert [int((odds.depth[n].cumsum() < 0.95).sum()) for n in (6, 10, 13, 16, 24)] == [5, 7, 8, 9, 11]


def trees(size: int, modulus: int):
    """Every expression of `size` operators: probability, symbols, and what the surface shows of it."""
    if size == 0:
        for value in range(modulus):
            yield 1 / modulus, [value]
        return
    for left, sign in product(range(size), range(3)):
        for (p, a), (q, b) in product(trees(left, modulus), list(trees(size - 1 - left, modulus))):
            yield p * q / 3 / size, [modulus + sign, *a, *b]


def surface(row: list[int], modulus: int) -> tuple:
    """Root operator, and its operands where they are numbers; of two numbers the first alone."""
    size = parse(row[1:], modulus)[2]
    left, right = row[1 : 1 + size], row[1 + size :]
    shown = [tuple(part) if len(part) == 1 else len(part) for part in (left, right)]
    return row[0], *(shown[:1] if len(row) == 3 else shown)


@pytest.mark.parametrize(("modulus", "operators"), [(3, 3), (5, 2)])
def test_floors_are_the_majority_answers_of_all_expressions(modulus: int, operators: int) -> None:
    odds, floors = expressions.odds(modulus, operators), Mano(modulus, operators).floors()
    right = np.zeros((operators + 1, operators + 1))
    weight = np.zeros_like(right)
    for size in range(1, operators + 1):
        table: dict = defaultdict(lambda: np.zeros((modulus, operators + 1)))
        zero = 0.0
        for probability, row in trees(size, modulus):
            value, depth, _ = parse(row, modulus)
            table[surface(row, modulus)][value, depth] += probability
            weight[size, depth] += probability
            zero += probability * (value == 0)
        for cell in table.values():
            right[size] += cell[(cell.sum(axis=1) + 1e-12 * (cell.sum(axis=1) == cell.sum(axis=1)[0])).argmax()]
        best = sum(cell.sum(axis=1).max() for cell in table.values())
        assert floors[f"accuracy/ops_{size}"]["value"] == pytest.approx(best, abs=1e-12)
        assert odds.zero[size].sum() == pytest.approx(zero, abs=1e-12)
    assert odds.depth[1:] == pytest.approx(weight[1:], abs=1e-12)
    for depth in range(1, operators + 1):
        expected = right[:, depth].sum() / weight[:, depth].sum()
        assert floors[f"accuracy/depth_{depth}"]["value"] == pytest.approx(expected, abs=1e-9)
    assert floors["accuracy"]["value"] > odds.zero[1:].sum() / operators


def problems(task: Mano, tokens: np.ndarray) -> set[tuple]:
    """The expressions that must be held out, with their length tokens."""
    rows = (row[1 : row.index(task.ans)] for row in tokens.tolist())
    return {tuple(row) for row in rows if row[0] > task.modulus + 2 + task.known_operators}


def test_splits_share_no_expression_but_the_known_ones() -> None:
    task = Mano(modulus=3, operators=2)  # 486 expressions of two operators in all
    train = set().union(*(problems(task, task.sample(seed, np.arange(3000))["tokens"]) for seed in range(2)))
    val, test = (problems(task, task.evaluation(split, 400)["tokens"]) for split in ("val", "test"))
    assert min(len(train), 6 * len(val), 6 * len(test)) > 200
    assert not (train & val or train & test or val & test)
    known = {tuple(row[1:6]) for row in task.sample(0, np.arange(3000))["tokens"].tolist() if row[1] == 6}
    assert len(known) == 27  # the operation tables are seen whole


def test_windows_with_synonyms_tell_nothing_of_another_split() -> None:
    """Problems read back from every training window, cut ones included, against both fixed sets."""
    task = Mano(3, 2, loss="all", synonyms=True, answer_marker="per_length", window=50)

    def held_out(tokens: np.ndarray) -> set[tuple]:
        row = np.where(tokens >= 3 + task.doubled, tokens - task.doubled, tokens).ravel().tolist()
        starts = [i for i, token in enumerate(row[:-6]) if token == task.bos and row[i + 1] == 3 + 2 + 2]
        return {tuple(row[i + 2 : i + 7]) for i in starts}

    train = set().union(*(held_out(window) for window in task.sample(0, np.arange(2000))["tokens"]))
    val, test = (held_out(task.evaluation(split, 400)["tokens"]) for split in ("val", "test"))
    assert min(len(train), 6 * len(val), 6 * len(test)) > 200
    assert not (train & val or train & test or val & test)


def test_evaluation_sets_are_the_same_whatever_training_takes() -> None:
    plain, windowed = Mano(), Mano(loss="all", window=60, mask_problems=False)
    for split in ("val", "test"):
        one, other = plain.evaluation(split, 30), windowed.evaluation(split, 30)
        assert all((one[key] == other[key]).all() for key in one)


def test_evaluation_holds_size_problems_per_number_of_operators() -> None:
    task = Mano(loss="all", window=40)
    arrays = task.evaluation("val", 50)
    assert np.bincount(arrays["group"][:, 0]).tolist() == [50] * 4
    assert ((arrays["targets"] != -100).sum(axis=1) == 1).all()  # the answer's loss apart, whatever training takes
    assert arrays["tokens"].shape == (200, 12)


def test_a_sample_is_a_function_of_seed_and_index() -> None:
    for task in (Mano(), Mano(7, 5, loss="all", synonyms=True, window=60)):
        whole, part = task.sample(1, np.arange(60)), task.sample(1, np.array([41, 3]))
        assert part.keys() == whole.keys()
        for key in whole:
            assert (whole[key][[41, 3]] == part[key]).all()
        assert (task.sample(2, np.arange(60))["tokens"] != whole["tokens"]).any(axis=1).all()


def test_loss_on_every_token_predicts_the_next_one_up_to_the_answer() -> None:
    arrays = Mano(loss="all").sample(0, np.arange(50))
    answers = Mano().sample(0, np.arange(50))
    for tokens, targets, answer in zip(arrays["tokens"], arrays["targets"], answers["targets"], strict=True):
        end = int((answer != -100).argmax())
        assert (targets[:end] == tokens[1 : end + 1]).all()
        assert targets[end] == answer[end]
        assert (targets[end + 1 :] == -100).all()


def test_windows_hold_whole_problems_one_after_another() -> None:
    task = Mano(7, 5, loss="all", window=64)
    arrays = task.sample(0, np.arange(30))
    assert arrays["tokens"].shape == (30, 64)
    assert arrays.keys() == {"tokens", "targets", "documents"}
    assert Mano(window=64, mask_problems=False).sample(0, np.arange(2)).keys() == {"tokens", "targets"}
    for tokens, targets, documents in zip(*(arrays[key] for key in ("tokens", "targets", "documents")), strict=True):
        for document in range(documents.max()):  # the last one may be cut
            here = np.flatnonzero(documents == document)
            row = tokens[here].tolist()
            value, _, read = parse(row[2:], 7)
            assert (row[0], row[2 + read :]) == (task.bos, [task.ans, value])
            assert len(row) == 2 * (row[1] - 9) + 5
            assert targets[here].tolist() == [*row[1:], -100]


def test_synonyms_are_two_ids_for_all_but_values() -> None:
    task, plain = Mano(synonyms=True), Mano()
    coined, single = task.sample(0, np.arange(2000))["tokens"], plain.sample(0, np.arange(2000))["tokens"]
    assert task.vocab_size == plain.vocab_size + plain.vocab_size - 5
    second = coined >= plain.vocab_size
    assert (np.where(second, coined - task.doubled, coined) == single).all()
    assert second[single >= 5].mean() == pytest.approx(0.5, abs=0.02)
    assert not second[single < 5].any()


def test_a_marker_per_length_tells_the_length_again() -> None:
    task, plain = Mano(answer_marker="per_length", synonyms=True), Mano()
    marked, single = task.sample(0, np.arange(500)), plain.sample(0, np.arange(500))
    assert task.vocab_size == 5 + 2 * (3 + 4 + 1 + 4)
    rows, places = np.nonzero(marked["scored"])
    marker = marked["tokens"][rows, places]
    marker = np.where(marker >= 5 + task.doubled, marker - task.doubled, marker)
    assert (marker == task.ans + single["tokens"][:, 1] - 8).all()
    assert (marked["targets"] == single["targets"]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modulus": 6}, "modulus = 6: must be a prime from 2 to 997"),
        ({"modulus": 1}, "modulus = 1: must be an integer from 2 to 997"),
        ({"operators": 0}, "operators = 0: must be an integer from 1 to 64"),
        ({"known_operators": 5}, "known_operators = 5: must be an integer from 1 to 4"),
        ({"loss": "some"}, "loss = 'some': must be one of answer, all"),
        ({"answer_marker": "two"}, "answer_marker = 'two': must be one of one, per_length"),
        ({"window": 8}, "window = 8: must be an integer ≥ 13"),
    ],
)
def test_bad_values_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mano(**arguments)
