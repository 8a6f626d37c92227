"""Symbolic i-GSM read back from its tokens and worked out by recursion; splits by search over canonical forms."""

from collections import Counter

import numpy as np
import pytest

from ouro_lab.data.tasks import IGSM
from ouro_lab.data.tasks.igsm import Systems

SIGNS = ["+", "-", "*", "(", ")", ":=", ";", "?", "<bos>"]
Terms = list[tuple[int, str]]  # sign and name
Definitions = dict[str, tuple[int, Terms]]  # factor and terms; of a constant its value and no term


def words(task: IGSM, row: list[int]) -> list[str]:
    letters = [chr(ord("A") + i) for i in range(task.signs - task.modulus)]
    return [[*map(str, range(task.modulus)), *letters, *SIGNS][token] for token in row]


def read(task: IGSM, row: list[int]) -> tuple[Definitions, str]:
    """Every definition and the asked name of a row up to its question mark."""
    text = " ".join(words(task, row))
    assert text.startswith("<bos> ")
    *lines, question = text.removeprefix("<bos> ").partition(" ?")[0].split(" ; ")
    definitions: Definitions = {}
    for line in lines:
        name, right = line.split(" := ")
        assert name not in definitions
        if right.isdigit():
            definitions[name] = int(right), []
            continue
        factor, _, rest = right.rpartition(" * ")
        terms: Terms = []
        parts = rest.strip("() ").split()
        assert ("(" in right) == (bool(factor) and len(parts) > 2)
        sign = 1
        while parts:
            if parts[0] in "+-":
                sign = 1 if parts.pop(0) == "+" else -1
            terms.append((sign, f"{parts.pop(0)} {parts.pop(0)}"))
        definitions[name] = int(factor or 1), terms
    return definitions, question


def work_out(definitions: Definitions, name: str, modulus: int) -> tuple[int, set[str], int]:
    """Value, the names that it takes, and its depth."""
    factor, terms = definitions[name]
    if not terms:
        return factor, {name}, 0
    found = [(sign, *work_out(definitions, other, modulus)) for sign, other in terms]
    value = factor * sum(sign * value for sign, value, _, _ in found) % modulus
    return value, {name}.union(*(names for _, _, names, _ in found)), 1 + max(depth for *_, depth in found)


def operations(definitions: Definitions, names: set[str]) -> int:
    return sum(len(t) - 1 + (f > 1) for f, t in (definitions[name] for name in names) if t)


def form(definitions: Definitions, name: str, template: bool) -> tuple:
    """What is computed, whatever the names and the order."""
    factor, terms = definitions[name]
    number = min(factor, 2 if terms else 0) if template else factor
    return number, tuple(sorted((sign, form(definitions, other, template)) for sign, other in terms))


def test_worked_example() -> None:
    """tasks.md §0.4, trap 22: I#N := 2 * (J#P + H#J + E#I) with 4, 1 and 4 is 4 modulo 7."""
    task = IGSM(modulus=7, fewest=4, most=4)
    e_i, j_p, h_j, i_n = 4 * 4 + 0, 9 * 4 + 3, 7 * 4 + 1, 8 * 4 + 1
    systems = Systems(
        constant=np.array([[4, 4, 1, 0]]),
        factor=np.array([[1, 1, 1, 2]]),
        terms=np.array([[0, 0, 0, 3]]),
        operands=np.array([[[0, 0, 0]] * 3 + [[1, 2, 0]]]),
        signs=np.ones((1, 4, 3), int),
        used=np.ones((1, 4), int),
        names=np.array([[e_i, j_p, h_j, i_n]]),
        order=np.array([[3, 0, 2, 1]]),
    )
    solved = task.solve(systems)
    assert (solved.value[0, 3], solved.operations[0, 3], solved.depth[0, 3]) == (4, 3, 1)
    rows, end = task.encode(systems, np.array([3]))
    text = "<bos> I N := 2 * ( J P + H J + E I ) ; E I := 4 ; H J := 1 ; J P := 4 ; I N ?"
    assert words(task, rows[0, : end[0]].tolist()) == text.split()


OPTIONS = [{}, {"modulus": 7, "operations": 9, "fewest": 2, "most": 12, "layers": 2}, {"most": 4, "operations": 2}]


@pytest.mark.parametrize("options", OPTIONS)
def test_samples_are_systems_with_their_answers(options: dict) -> None:
    task = IGSM(**options)
    arrays = task.sample(0, np.arange(200))
    assert arrays["tokens"].shape == (200, task.sequence_length)
    assert arrays["tokens"].max() < task.vocab_size
    columns = [arrays[key].tolist() for key in ("tokens", "targets", "scored", "group")]
    for tokens, targets, scored, group in zip(*columns, strict=True):
        definitions, asked = read(task, tokens)
        assert task.fewest <= len(definitions) <= task.most
        value, names, depth = work_out(definitions, asked, task.modulus)
        mark = words(task, tokens).index("?")
        assert [(i, t) for i, t in enumerate(targets) if t != -100] == [(mark, value)]
        assert [i for i, s in enumerate(scored) if s] == [mark]
        assert [task.groups[g] for g in group] == [f"ops_{operations(definitions, names)}", f"depth_{depth}"]
        assert all(ord(lower) // 4 == ord(upper) // 4 + 1 for upper, lower in map(str.split, shifted(definitions)))


def shifted(definitions: Definitions) -> list[str]:
    """Names with letters counted from a multiple of four, the letters of a layer."""
    return [" ".join(chr(ord(letter) - ord("A") + 64) for letter in name.split()) for name in definitions]


def test_the_laws_are_as_stated() -> None:
    task = IGSM()
    arrays = task.sample(0, np.arange(4000))
    assert np.bincount(arrays["group"][:, 0]) / 4000 == pytest.approx([1 / 6] * 6, abs=0.02)
    rows = [read(task, row) for row in arrays["tokens"].tolist()]
    names = Counter(name for definitions, _ in rows for name in definitions)
    assert len(names) == 48
    assert min(names.values()) > 0.7 * max(names.values())
    place = [list(definitions).index(asked) / (len(definitions) - 1) for definitions, asked in rows]
    assert np.mean(place) == pytest.approx(0.5, abs=0.03)
    numbers = Counter(f for definitions, _ in rows for f, terms in definitions.values() if not terms)
    assert min(numbers.values()) > 0.8 * max(numbers.values())
    factors = Counter(f for definitions, _ in rows for f, terms in definitions.values() if terms)
    assert set(factors) == {1, 2, 3, 4}
    assert any(len(work_out(d, asked, 5)[1]) < len(d) for d, asked in rows)  # definitions that mislead


@pytest.mark.parametrize("covers", ["values", "template"])
def test_splits_share_no_calculation_under_any_names_or_order(covers: str) -> None:
    task = IGSM(modulus=3, operations=2, fewest=3, most=5, covers=covers)

    def forms(arrays: dict) -> set[tuple]:
        return {form(*read(task, row), covers == "template") for row in arrays["tokens"].tolist()}

    train = set().union(*(forms(task.sample(seed, np.arange(2000))) for seed in range(2)))
    val, test = (forms(task.evaluation(split, 300)) for split in ("val", "test"))
    assert min(len(train), 8 * len(val), 8 * len(test)) > 40
    assert not (train & val or train & test or val & test)


def test_the_loss_is_on_the_answer_or_on_all_of_the_problem() -> None:
    everything = IGSM(loss="all").sample(0, np.arange(40))
    for tokens, targets, scored in zip(*(everything[k] for k in ("tokens", "targets", "scored")), strict=True):
        end = int(scored.argmax())
        assert (targets[:end] == tokens[1 : end + 1]).all()
        assert (targets[end + 1 :] == -100).all()
    assert (IGSM(loss="all").evaluation("val", 5)["targets"] == IGSM().evaluation("val", 5)["targets"]).all()


def test_evaluation_holds_size_problems_per_number_of_operations() -> None:
    arrays = IGSM().evaluation("test", 30)
    assert np.bincount(arrays["group"][:, 0]).tolist() == [30] * 6


def test_a_sample_is_a_function_of_seed_and_index() -> None:
    task = IGSM()
    whole, part = task.sample(1, np.arange(60)), IGSM().sample(1, np.array([41, 3]))
    for key in whole:
        assert (whole[key][[41, 3]] == part[key]).all()
    assert (task.sample(2, np.arange(60))["tokens"] != whole["tokens"]).any(axis=1).all()


def test_floors_are_near_the_most_common_answer() -> None:
    """Of one operation the asked definition tells most; of more, little over the share of the most common answer."""
    task = IGSM()
    floors = task.floors()
    assert set(floors) >= {"accuracy", *(f"accuracy/ops_{n}" for n in range(1, 7)), "accuracy/depth_3"}
    assert set(floors) <= {"accuracy", *(f"accuracy/{group}" for group in task.groups)}
    assert 0.4 < floors["accuracy/ops_1"]["value"] < 0.6
    answers = task.evaluation("test", 2000)
    for n in range(2, 7):
        drawn = answers["targets"].max(axis=1)[answers["group"][:, 0] == n - 1]
        constant = np.bincount(drawn).max() / len(drawn)
        assert constant - 0.05 < floors[f"accuracy/ops_{n}"]["value"] < constant + 0.15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modulus": 6}, "modulus = 6: must be a prime from 3 to 97"),
        ({"modulus": 2}, "modulus = 2: must be an integer from 3 to 97"),
        ({"operations": 0}, "operations = 0: must be an integer from 1 to 64"),
        ({"fewest": 9}, "fewest = 9: must be an integer from 2 to 8"),
        ({"most": 65}, "most = 65: must be an integer from 2 to 48"),
        ({"covers": "names"}, "covers = 'names': must be one of values, template"),
        ({"loss": "some"}, "loss = 'some': must be one of answer, all"),
    ],
)
def test_bad_values_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IGSM(**arguments)


def test_a_number_of_operations_that_no_system_takes_is_named() -> None:
    task = IGSM(operations=30, fewest=2, most=3)
    with pytest.raises(ValueError, match="operations = 30: hardly any system of up to 3 variables has one that takes"):
        task.sample(0, np.arange(4))
