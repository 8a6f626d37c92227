"""Reachability in the prompt's graph against breadth-first search on the edges as written."""

from collections import Counter

import numpy as np
import pytest

from ouro_lab.data.tasks import Reachability
from ouro_lab.data.tasks.reachability import FAR, distances

OPTIONS = [
    {"vertices": 10, "edges": 15, "max_distance": 5},
    {"vertices": 10, "edges": 15, "max_distance": 5, "query": "first"},
    {"vertices": 12, "edges": 10, "max_distance": 4, "directed": False},
]


def search(edges: list[tuple[int, int]], start: int) -> dict[int, int]:
    """Vertices reached from `start` and their distances."""
    found, queue = {start: 0}, [start]
    for u in queue:
        for a, b in edges:
            if a == u and b not in found:
                found[b] = found[u] + 1
                queue.append(b)
    return found


def read(task: Reachability, tokens: list[int]) -> tuple[list[tuple[int, int]], int, int]:
    """The edges as listed, and the pair; "=" is the last token."""
    assert tokens[-1] == task.equals
    symbols = tokens[:-1]
    pair, listed = (symbols[-2:], symbols[:-2]) if task.query == "last" else (symbols[:2], symbols[2:])
    return list(zip(listed[::2], listed[1::2], strict=True)), *pair


def both_ways(task: Reachability, edges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return edges if task.directed else edges + [(b, a) for a, b in edges]


@pytest.mark.parametrize("options", OPTIONS)
def test_answers_and_groups_are_those_of_a_search(options: dict) -> None:
    task = Reachability(**options)
    arrays = task.sample(3, np.arange(200))
    for tokens, targets, group in zip(*(arrays[key].tolist() for key in ("tokens", "targets", "group")), strict=True):
        listed, u, v = read(task, tokens)
        edges, distance = both_ways(task, listed), group[0] + 1
        assert len({frozenset(e) if not task.directed else e for e in listed}) == task.edges
        assert all(a != b for a, b in listed)
        onwards, backwards = search(edges, u), search([(b, a) for a, b in edges], v)
        assert targets[:-1] == [-100] * (len(tokens) - 1)
        assert targets[-1] == (task.yes if v in onwards else task.no)
        if v in onwards:
            assert onwards[v] == distance
        else:
            assert min(max(onwards.values()), max(backwards.values())) >= (distance + 1) // 2
        kind = "yes" if v in onwards else "no"
        assert task.groups[group[1]] == f"{kind}_{distance}"
        assert task.groups[group[0]] == f"distance_{distance}"


def test_adjacency_and_pair_read_a_prompt() -> None:
    task = Reachability(vertices=4, edges=3, max_distance=3)
    tokens = np.array([[2, 0, 0, 3, 3, 1, 2, 1, task.equals]])
    assert np.argwhere(task.adjacency(tokens)[0]).tolist() == [[0, 3], [2, 0], [3, 1]]
    assert [int(x[0]) for x in task.pair(tokens)] == [2, 1]
    assert distances(task.adjacency(tokens))[0].tolist() == [
        [0, 2, FAR, 1],
        [FAR, 0, FAR, FAR],
        [1, 3, 0, 2],
        [FAR, 1, FAR, 0],
    ]


def test_distances_are_uniform_and_answers_balanced() -> None:
    task = Reachability()
    arrays = task.sample(0, np.arange(3000))
    assert arrays["tokens"].shape == (3000, 59) == (3000, task.sequence_length)
    assert task.vocab_size == 23
    counts = np.bincount(arrays["group"][:, 1], minlength=24)[8:]
    assert counts.sum() == 3000
    assert counts.min() > 140  # of 187 expected
    held = task.evaluation("test", 30)
    assert np.bincount(held["group"][:, 0]).tolist() == [30] * 8
    assert np.bincount(held["group"][:, 1])[8:].tolist() == [15] * 16


@pytest.mark.parametrize("options", OPTIONS)
def test_the_graph_alone_tells_nothing(options: dict) -> None:
    """The same draw has the same edges in the same order, whether the answer is yes or no."""
    task, distance = Reachability(**options), np.repeat([1, 2, 3, 4], 10)
    yes, no = (task._draw(0, np.arange(40), "train", distance, np.full(40, answer)) for answer in (True, False))
    for one, other in zip(yes["tokens"].tolist(), no["tokens"].tolist(), strict=True):
        assert read(task, one)[0] == read(task, other)[0]
        assert read(task, one)[1:] != read(task, other)[1:]
    assert {row[-1] for row in yes["targets"].tolist()} == {task.yes}
    assert {row[-1] for row in no["targets"].tolist()} == {task.no}


def test_vertices_and_order_of_edges_are_uniform() -> None:
    task = Reachability(vertices=8, edges=10, max_distance=3)
    tokens = task.sample(0, np.arange(4000))["tokens"]
    for place in (0, 1, 18, 20, 21):
        assert np.bincount(tokens[:, place], minlength=8).min() > 400  # of 500 expected


@pytest.mark.parametrize("directed", [True, False])
def test_no_graph_of_a_split_is_in_another_in_any_order(directed: bool) -> None:
    task = Reachability(vertices=5 if directed else 6, edges=4, max_distance=2, directed=directed)  # 4,845 or 1,365

    def graphs(tokens: np.ndarray) -> set[frozenset]:
        rows = (read(task, row)[0] for row in tokens.tolist())
        return {frozenset(e if directed else frozenset(e) for e in edges) for edges in rows}

    trained = set().union(*(graphs(task.sample(seed, np.arange(1500))["tokens"]) for seed in range(3)))
    val, test = (graphs(task.evaluation(split, 100)["tokens"]) for split in ("val", "test"))
    assert len(trained) > 100
    assert val
    assert test
    assert not (trained & val or trained & test or val & test)


def test_a_sample_is_a_function_of_seed_and_index() -> None:
    task = Reachability()
    whole, part = task.sample(1, np.arange(100)), Reachability().sample(1, np.array([70, 3]))
    for key in whole:
        assert (whole[key][[70, 3]] == part[key]).all()
    assert (task.sample(2, np.arange(100))["tokens"] != whole["tokens"]).any(axis=1).all()


def test_floors_are_low_where_the_distance_is_long() -> None:
    task = Reachability(vertices=12, edges=15, max_distance=5)
    floors = task.floors()
    assert set(floors) == {"accuracy", *(f"accuracy/distance_{d}" for d in range(1, 6))}
    values = [float(floors[f"accuracy/distance_{d}"]["value"]) for d in range(1, 6)]
    assert all(0.48 < value < 0.76 for value in values)
    assert max(values[3:]) < 0.65
    assert "u" in str(floors["accuracy/distance_1"]["what"])


def test_floors_match_a_majority_table_by_hand() -> None:
    """Distance 1: given the edges out of u and those into v, counted from the prompts of another set."""
    task = Reachability(vertices=8, edges=12, max_distance=2)

    def rows(split: str) -> list[tuple[tuple[int, int], int]]:
        found = []
        arrays = task.evaluation(split, 2000)
        for tokens, answer in zip(arrays["tokens"][:2000].tolist(), arrays["targets"][:2000, -1].tolist(), strict=True):
            edges, u, v = read(task, tokens)
            found.append(((sum(a == u for a, _ in edges), sum(b == v for _, b in edges)), answer))
        return found

    table: dict[tuple[int, int], Counter] = {}
    for cell, answer in rows("train"):
        table.setdefault(cell, Counter())[answer] += 1
    hits = [cell in table and table[cell].most_common(1)[0][0] == answer for cell, answer in rows("test")]
    assert float(task.floors()["accuracy/distance_1"]["value"]) == pytest.approx(np.mean(hits), abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vertices": 2}, r"vertices = 2: must be an integer from 3 to 256"),
        ({"edges": 381}, r"edges = 381: must be an integer from 8 to 380"),
        ({"edges": 191, "directed": False}, r"edges = 191: must be an integer from 8 to 190"),
        ({"max_distance": 20}, r"max_distance = 20: must be an integer from 1 to 19"),
        ({"query": "middle"}, r"query = 'middle': must be one of last, first"),
    ],
)
def test_bad_values_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reachability(**arguments)


def test_a_distance_that_no_graph_has_is_named() -> None:
    task = Reachability(vertices=5, edges=19, max_distance=4)
    with pytest.raises(ValueError, match=r"max_distance = 4: hardly any graph of 5 vertices and 19 edges has pairs"):
        task.sample(0, np.arange(8))
