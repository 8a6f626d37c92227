"""Capo: people without repeats, exposures that tell everyone once, biographies that hold their facts, exact bits."""

import math
import pickle
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from ouro_lab.data import CapacityData, EvaluationMetrics
from ouro_lab.data.tasks import BioD, BioS
from ouro_lab.data.tasks.capo import Capo, distinct_rows

TASKS = {
    "bio_d": lambda **more: BioD(people=60, names=[10, 12], attributes=3, chunks=2, diversity=5, length=2, **more),
    "bio_s": lambda **more: BioS(people=60, **more),
}


@pytest.mark.parametrize("sizes", [(9, 9), (4, 5, 6), (2000, 2000, 2000)])
def test_rows_are_distinct_and_every_digit_uniform(sizes: tuple[int, ...]) -> None:
    rows = distinct_rows(0, "test", 80, sizes)
    assert len({tuple(row) for row in rows.tolist()}) == 80
    assert (rows < sizes).all()
    assert (rows.max(axis=0) > np.array(sizes) * 0.7).all()


@pytest.mark.parametrize("name", TASKS)
def test_every_exposure_tells_each_person_once(name: str) -> None:
    task = TASKS[name]()
    width = len(task.lists)
    told = task.sample(3, np.arange(180))["tokens"][:, 1 : 1 + width].reshape(3, 60, width)
    everyone = {tuple(row) for row in task.names.tolist()}
    assert len(everyone) == 60
    assert all({tuple(row) for row in exposure.tolist()} == everyone for exposure in told)
    assert (told[0] != told[1]).any()


@pytest.mark.parametrize("name", TASKS)
def test_a_sample_is_a_function_of_seed_and_index(name: str) -> None:
    whole, part = (TASKS[name]().sample(1, rows) for rows in (np.arange(150), np.array([130, 4])))
    for key in whole:
        assert (whole[key][[130, 4]] == part[key]).all()
    other = TASKS[name]().sample(2, np.arange(150))
    assert (whole["tokens"] != other["tokens"]).any()


@pytest.mark.parametrize("name", TASKS)
def test_people_depend_on_their_population_alone(name: str) -> None:
    task, again, others = TASKS[name](), TASKS[name](), TASKS[name](population=1)
    assert (task.values == again.values).all()
    assert (task.values != others.values).any()
    assert (task.evaluation("val", 20)["tokens"] == again.evaluation("val", 20)["tokens"]).all()


@pytest.mark.parametrize("name", TASKS)
def test_evaluation_is_of_the_people_trained_on(name: str) -> None:
    task = TASKS[name]()
    width = len(task.lists)
    trained = {tuple(row) for row in task.sample(0, np.arange(60))["tokens"][:, 1 : 1 + width].tolist()}
    for split, size in (("val", 20), ("test", 10**6)):
        arrays = task.evaluation(split, size)
        assert len(arrays["tokens"]) == min(size, 60)
        assert {tuple(row) for row in arrays["tokens"][:, 1 : 1 + width].tolist()} <= trained
    assert (task.evaluation("val", 20)["tokens"] != task.evaluation("test", 20)["tokens"]).any()


def test_bio_d_tells_every_attribute_with_its_value() -> None:
    task = TASKS["bio_d"]()
    facts = {tuple(name): values.tolist() for name, values in zip(task.names.tolist(), task.values, strict=True)}
    orders = set()
    arrays = task.sample(0, np.arange(60))
    for tokens, targets in zip(arrays["tokens"].tolist(), arrays["targets"].tolist(), strict=True):
        assert targets == [*tokens[1:], 0]
        told = [tokens[start : start + 5] for start in (3, 8, 13)]  # an attribute and two chunks of two tokens
        attributes = [part[0] - task.first_attribute for part in told]
        orders.add(tuple(attributes))
        values = [token for _, part in sorted(zip(attributes, told, strict=True)) for token in part[1:]]
        assert values == facts[tuple(tokens[1:3])]
    assert len(orders) == 6
    part = arrays["part"][0].tolist()
    assert part == [0, 0, *[-1, 1, 1, 2, 2] * 3, -1]
    assert (arrays["scored"] == (arrays["part"] > 0)).all()


def test_bio_d_values_are_uniform_over_distinct_strings() -> None:
    task = BioD(people=4000, names=[96, 96], attributes=2, chunks=2, diversity=16, length=3, alphabet=4)
    assert all(len({tuple(string) for string in strings.tolist()}) == 16 for strings in task.sets)
    counts = np.stack([np.bincount(task.choices[:, k].ravel(), minlength=16) for k in range(2)])
    assert counts / 8000 == pytest.approx(np.full((2, 16), 1 / 16), abs=0.012)


def test_bio_d_mini_is_the_size_of_the_study() -> None:
    task = BioD()
    assert (task.vocab_size, task.sequence_length) == (1 + 192 + 8 + 64, 1 + 2 + 8 * 2)
    sizes = [sum(term.most for term in BioD(people=n).terms) for n in (600, 1300, 2600)]
    assert sizes == pytest.approx([600 * (math.log2(9216 / 600) + 48), 66_073, 129_547], abs=1)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_goes_to_worker_processes(name: str) -> None:
    task = TASKS[name]()
    again = pickle.loads(pickle.dumps(task))
    assert (again.sample(0, np.arange(9))["tokens"] == task.sample(0, np.arange(9))["tokens"]).all()


@pytest.mark.parametrize("name", TASKS)
def test_the_floor_is_the_most_common_value(name: str) -> None:
    """Token by token; within a string of several tokens its own earlier ones are known, which tells most of it."""
    task = TASKS[name]()
    tables: dict[tuple, Counter] = defaultdict(Counter)
    for row in task.values.tolist():
        for place, token in enumerate(row):
            tables[place, *row[place - place % task.string : place]][token] += 1
    hits = sum(max(table.values()) for table in tables.values())
    scored = task.evaluation("test", 60)["scored"].sum()
    assert CapacityData(task).floors()["accuracy"]["value"] == pytest.approx(hits / scored)
    assert scored == task.values.size  # each value is scored once a biography


def evaluated(task: Capo, nats: dict[str, float]) -> dict[str, float]:
    """Metrics of a model that pays so many nats in all for the tokens of each part of a biography."""
    arrays = {key: torch.from_numpy(np.ascontiguousarray(v)) for key, v in task.evaluation("test", 60).items()}
    part = arrays["part"]
    loss = torch.zeros(part.shape, dtype=torch.float64)
    for index, label in enumerate(task.parts):
        here = part == index
        loss[here] = nats.get(label, 0.0) / max(1, int(here[0].sum()))
    metrics = CapacityData(task).metrics(1, 1000)
    metrics.update(arrays, loss[None], torch.zeros(1, *part.shape) > 0)
    return {key: float(value) for key, value in metrics.compute().items()}


@pytest.mark.parametrize("name", TASKS)
def test_who_knows_every_person_holds_all_bits(name: str) -> None:
    assert evaluated(TASKS[name](), {"name": math.log(60)})["bits_of_max"] == pytest.approx(1, abs=1e-12)


def test_who_knows_the_lists_alone_is_at_the_floor() -> None:
    bio_s = TASKS["bio_s"]()
    ignorant = {term.name: term.log2_choices * math.log(2) for term in bio_s.terms}
    assert evaluated(bio_s, ignorant)["bits"] == pytest.approx(0, abs=1e-9)
    floors = CapacityData(bio_s).floors()
    assert [floors[name]["value"] for name in ("bits", "bits_of_max", "bits_per_parameter")] == [0, 0, 0]
    for alphabet in (3, 5, 64):  # fewer, as many and more than D² strings: K·D·log₂(T^L/D²)
        task = BioD(people=60, names=[10, 12], attributes=3, chunks=2, diversity=5, length=2, alphabet=alphabet)
        first = later = 3 * math.log(5)  # all attributes together
        stored = evaluated(task, {"name": math.log(120), "first_chunk": first, "later_chunks": later})
        floors = CapacityData(task).floors()
        expected = 3 * 5 * math.log2(alphabet**2 / 25)
        assert floors["bits"]["value"] == pytest.approx(expected, abs=1e-9)
        assert stored["bits"] == pytest.approx(expected, abs=1e-9)
        assert stored["bits_of_max"] == pytest.approx(floors["bits_of_max"]["value"], abs=1e-9)
        assert ("bits_per_parameter" in floors) == (alphabet <= 5)  # 0 bounds no positive one, which depends on P


@pytest.mark.parametrize("name", TASKS)
def test_metrics_are_the_formulas(name: str) -> None:
    """Against sums over tokens, in batches of unequal size, two loops; to 1e-9."""
    task = TASKS[name]()
    data, parameters = CapacityData(task, test_size=60), 1234
    metrics = data.metrics(2, parameters)
    generator = torch.Generator().manual_seed(0)
    arrays = {key: torch.from_numpy(np.ascontiguousarray(v)) for key, v in task.evaluation("test", 60).items()}
    loss = torch.rand(2, *arrays["tokens"].shape, generator=generator, dtype=torch.float64)
    loss[:, arrays["targets"] == -100] = float("nan")
    correct = torch.rand(loss.shape, generator=generator) < 0.5
    for rows in (slice(0, 25), slice(25, 60)):
        metrics.update({key: value[rows] for key, value in arrays.items()}, loss[:, rows], correct[:, rows])
    values = {key: float(value) for key, value in metrics.compute().items()}

    n, log2, ln2, last = 60, math.log2, math.log(2), loss[1].numpy()
    part = {label: last[(arrays["part"] == k).numpy()].sum() for k, label in enumerate(task.parts)}
    if name == "bio_d":
        k, c, d, length, t = 3, 2, 5, 2, 64
        p1, p2, p3 = (
            part["name"] / n,
            (part["first_chunk"] + part["later_chunks"]) / (n * k),
            part["first_chunk"] / (n * k),
        )
        expected = n * (log2(120) - p1 / ln2) + n * k * (c * log2(d) - p2 / ln2)
        expected += k * d * (length * log2(t) - log2(d) - p3 / ln2)
        most = n * log2(120 / n) + n * k * c * log2(d) + k * d * log2(t**length / d)
        assert values["loss/diversity"] == pytest.approx(p3, rel=1e-9)
    else:
        s0 = 12 * 28 * 50 * 50 * 60 * 40 * 50 * 2
        p1, p2 = part["name"] / n, sum(part[label] for label in task.parts[1:]) / n
        expected = n * (log2(160_000) - p1 / ln2) + n * (log2(s0) - p2 / ln2)
        most = n * log2(160_000 / n) + n * log2(s0)
    assert values["bits"] == pytest.approx(expected, rel=1e-9)
    assert values["bits_per_parameter"] == pytest.approx(expected / parameters, rel=1e-9)
    assert values["bits_per_parameter_loop2"] == values["bits_per_parameter"] != values["bits_per_parameter_loop1"]
    assert values["bits_of_max"] == pytest.approx(expected / most, rel=1e-9)
    assert values["loss/name"] == pytest.approx(p1, rel=1e-9)
    assert values["bits/name"] + values["bits/attributes"] == pytest.approx(expected, rel=1e-9)
    plain = EvaluationMetrics(2)
    plain.update(arrays, loss, correct)
    assert {key: values[key] for key in plain.compute()} == pytest.approx(
        {k: float(v) for k, v in plain.compute().items()}
    )
    assert set(data.metric_names) == {re.sub(r"_loop\d", "", key) for key in values}


def test_without_a_number_of_parameters_bits_alone_are_told() -> None:
    task = TASKS["bio_d"]()
    metrics = CapacityData(task).metrics(1)
    arrays = {key: torch.from_numpy(np.ascontiguousarray(v)) for key, v in task.evaluation("val", 4).items()}
    metrics.update(arrays, torch.zeros(1, *arrays["tokens"].shape), torch.ones(1, *arrays["tokens"].shape) > 0)
    assert "bits" in metrics.compute()
    assert "bits_per_parameter" not in metrics.compute()


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (BioD, {"people": 200, "names": [10, 12]}, "people = 200: must be an integer from 1 to 120"),
        (BioD, {"names": [0]}, "names = 0: must be an integer ≥ 1"),
        (BioD, {"diversity": 65}, "diversity = 65: must be an integer from 2 to 64"),
        (BioD, {"chunks": 0}, "chunks = 0: must be an integer from 1 to 1000"),
        (BioS, {"names": [10, 12]}, r"names = \[10, 12\]: must be three sizes"),
        (BioS, {"templates": 51}, "templates = 51: must be an integer from 1 to 50"),
        (BioS, {"majors": 0}, "majors = 0: must be an integer from 1 to 10000"),
        (BioS, {"population": -1}, "population = -1: must be an integer ≥ 0"),
    ],
)
def test_bad_values_are_named(make: type, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)
