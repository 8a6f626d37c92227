"""Addition against Python's own, its worked example, and its splits by search."""

import numpy as np
import pytest

from ouro_lab.data.tasks import Addition

SIGNS = "0123456789+=."


def text(row: list[int]) -> str:
    return "".join(SIGNS[token] for token in row)


def whole(arrays: dict, row: int) -> str:
    """A problem read back: the tokens up to "=", then the targets up to the end."""
    prompt = text(arrays["tokens"][row].tolist()).partition("=")[0]
    answer = text([t for t, s in zip(*(arrays[k][row].tolist() for k in ("targets", "scored")), strict=True) if s])
    return f"{prompt}={answer}"


def operands(arrays: dict) -> list[tuple[int, ...]]:
    prompts = (text(row).partition("=")[0] for row in arrays["tokens"].tolist())
    return [tuple(sorted(int(number) for number in prompt.split("+"))) for prompt in prompts]


def test_worked_example() -> None:
    """tasks.md §0.4: 315+120+045+824 → 1304; the operand keeps its zero, the sum gets none."""
    task = Addition(operands=4, digits=3)
    numbers = np.array([[[3, 1, 5], [1, 2, 0], [0, 4, 5], [8, 2, 4]]])
    rows, answer = task.encode(numbers, np.array([4]), np.array([3]))
    assert text(rows[0].tolist()) == "315+120+045+824=1304."
    assert text(rows[0][answer[0]].tolist()) == "1304."
    backwards, _ = Addition(operands=4, digits=3, reverse=True).encode(numbers, np.array([4]), np.array([3]))
    assert text(backwards[0].tolist()) == "315+120+045+824=4031."
    assert (task.vocab_size, task.sequence_length) == (13, 20)


def test_a_sum_of_zero_is_one_digit_and_a_short_row_is_filled() -> None:
    task = Addition(operands=[2, 3], digits=[1, 2])
    rows, answer = task.encode(np.zeros((1, 3, 2), int), np.array([2]), np.array([1]))
    assert text(rows[0].tolist()) == "0+0=0" + 8 * "."
    assert text(rows[0][answer[0]].tolist()) == "0."


@pytest.mark.parametrize(
    "options",
    [
        {"operands": [2, 5, 9], "digits": [1, 3]},
        {"operands": 2, "digits": 20},
        {"operands": [2, 3], "reverse": True},
        {"operands": 30, "digits": 1, "loss": "all"},
    ],
)
def test_samples_are_sums(options: dict) -> None:
    task = Addition(**options)
    arrays = task.sample(0, np.arange(200))
    assert arrays["tokens"].shape == (200, task.sequence_length)
    for row, group in enumerate(arrays["group"].tolist()):
        prompt, answer = whole(arrays, row).split("=")
        numbers = prompt.split("+")
        assert answer[-1] == "."
        digits = answer[-2::-1] if task.reverse else answer[:-1]
        assert digits == str(sum(map(int, numbers)))
        assert len({len(number) for number in numbers}) == 1
        names = [task.groups[index] for index in group]
        assert names == [f"operands_{len(numbers)}", f"digits_{len(numbers[0])}"]


def test_counts_and_digits_are_uniform() -> None:
    task = Addition(operands=[2, 4, 8], digits=[1, 2])
    arrays = task.sample(0, np.arange(6000))
    shares = np.bincount(arrays["group"].ravel(), minlength=5) / 6000
    assert shares == pytest.approx([1 / 3] * 3 + [1 / 2] * 2, abs=0.025)
    first = arrays["tokens"][:, 0]
    assert np.bincount(first) / 6000 == pytest.approx([0.1] * 10, abs=0.015)


def test_the_loss_is_on_the_answer_or_on_all_of_the_problem() -> None:
    answer, everything = Addition().sample(0, np.arange(50)), Addition(loss="all").sample(0, np.arange(50))
    assert ((answer["targets"] != -100) == answer["scored"]).all()
    for tokens, targets, scored in zip(*(everything[k] for k in ("tokens", "targets", "scored")), strict=True):
        last = np.flatnonzero(scored)[-1]
        assert (targets[:last] == tokens[1 : last + 1]).all()
        assert targets[last] == 12
        assert (targets[last + 1 :] == -100).all()
    held = Addition(loss="all").evaluation("val", 20)
    assert ((held["targets"] != -100) == held["scored"]).all()


def test_splits_share_no_operands_in_any_order() -> None:
    task = Addition(operands=[2, 3], digits=1)  # 55 and 220 multisets in all
    train = set().union(*(operands(task.sample(seed, np.arange(3000))) for seed in range(2)))
    val, test = (set(operands(task.evaluation(split, 400))) for split in ("val", "test"))
    assert min(len(train), 6 * len(val), 6 * len(test)) > 100
    assert not (train & val or train & test or val & test)


def test_evaluation_may_ask_for_other_counts_than_training() -> None:
    task = Addition(operands=[2, 4], digits=[1, 2], evaluated=[3, 4])
    assert task.groups == ("operands_2", "operands_3", "operands_4", "digits_1", "digits_2")
    assert set(task.sample(0, np.arange(300))["group"][:, 0]) == {0, 2}
    held = task.evaluation("test", 50)
    assert np.bincount(held["group"].ravel(), minlength=5).tolist() == [0, 50, 50, 50, 50]
    assert set(task.floors()) == {"accuracy", *(f"accuracy/{g}" for g in task.groups if g != "operands_2")}


def test_a_sample_is_a_function_of_seed_and_index() -> None:
    task = Addition(operands=[2, 9], digits=[1, 3])
    whole_batch, part = task.sample(1, np.arange(60)), task.sample(1, np.array([41, 3]))
    for key in whole_batch:
        assert (whole_batch[key][[41, 3]] == part[key]).all()
    assert (task.sample(2, np.arange(60))["tokens"] != whole_batch["tokens"]).any(axis=1).mean() > 0.9


def test_the_floor_is_the_best_table_given_one_of_two_operands() -> None:
    """By listing all sums of two digits; a constant answer scores the same there, and less with more operands."""
    sums = np.add.outer(np.arange(10), np.arange(10))
    best = np.mean([np.bincount(row).max() / 10 for row in sums])
    constant = np.bincount(sums.ravel()).max() / 100
    floor = Addition(operands=2, digits=1).floors()["accuracy/operands_2"]["value"]
    assert floor == pytest.approx(best)
    assert floor >= constant
    assert Addition(digits=3).floors()["accuracy"]["value"] == pytest.approx(0.001)  # the paper's 1⊗1: .1 %


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"operands": 1}, r"operands = 1: must be an integer from 2 to 256"),
        ({"operands": []}, r"operands = \[\]: must be an integer from 2 to 256, or a list of such integers"),
        ({"digits": [1, 0]}, r"digits = 0: must be an integer from 1 to 64"),
        ({"digits": "two"}, r"digits = 'two': must be an integer from 1 to 64, or a list of such integers"),
        ({"evaluated": [300]}, r"evaluated = 300: must be an integer from 2 to 256"),
        ({"loss": "some"}, r"loss = 'some': must be one of answer, all"),
    ],
)
def test_bad_values_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Addition(**arguments)
