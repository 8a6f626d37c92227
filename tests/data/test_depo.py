"""Depo against a dictionary walked step by step, its worked example, its laws, and its splits by search."""

import numpy as np
import pytest

from ouro_lab.data.tasks import Depo
from ouro_lab.data.tasks.depo import Cycles

DEPO1 = {"nodes": 12, "hops": 5, "letters": 5, "shortest": 1, "longest": 2, "queries": 4}
DEPO2 = {"nodes": 9, "hops": 16, "letters": 3, "shortest": 2, "longest": 4, "queries": 20}
Name = tuple[int, ...]


def read(task: Depo, row: list[int]) -> tuple[list[tuple[Name, Name]], list[tuple[int, Name, Name]]]:
    """The edges and the queries (k, start, answer) of a whole row."""
    assert row[0] == task.bos
    names: list[Name] = []
    edges: list[tuple[Name, Name]] = []
    queries: list[tuple[int, Name, Name]] = []
    word: Name = ()
    k = 0
    for token in row[1:]:
        if token < task.query:
            word += (token,)
            if token >= task.letters:
                names.append(word)
                word = ()
        elif token < task.ans:
            edges = edges or list(zip(names[::2], names[1::2], strict=True))
            if k:
                queries.append((k, *names))
            names, k = [], token - task.query + 1
    queries.append((k, *names))
    assert not word
    return edges, queries


def whole(arrays: dict, row: int) -> list[int]:
    """Inputs, then the last target; what fills the row behind is left out."""
    tokens, targets = arrays["tokens"][row].tolist(), arrays["targets"][row].tolist()
    last = max(i for i, target in enumerate(targets) if target != -100)
    return [*tokens[: last + 1], targets[last]]


def walk(edges: list[tuple[Name, Name]], start: Name, steps: int) -> Name:
    follow = dict(edges)
    for _ in range(steps):
        start = follow[start]
    return start


def test_worked_example() -> None:
    """tasks.md §0.4: edges b→c, a→b, c→a; two steps from a lead to c, three to a, five from b to a."""
    task = Depo(nodes=3, hops=5, letters=3, queries=3)
    a, b, c = 3, 4, 5
    starts, orders, hops = (np.array([row]) for row in ([0, 0, 1], [1, 0, 2], [2, 3, 5]))
    rows, owner = task.encode(Cycles(np.arange(3)[None], np.array([3])), starts, orders, hops)
    q, ans = task.query - 1, task.ans
    edges, asked = [b, c, a, b, c, a], [q + 2, a, ans, c, q + 3, a, ans, a, q + 5, b, ans, a]
    assert rows[0].tolist() == [task.bos, *edges, *asked]
    assert owner[0].tolist() == [0] * 7 + [0, 0, 1, 1, 0, 0, 2, 2, 0, 0, 3, 3]
    assert (task.vocab_size, task.sequence_length) == (6 + 5 + 2, 18)


@pytest.mark.parametrize("options", [DEPO1, DEPO2, DEPO1 | {"sizes": "uniform", "loss": "all"}])
def test_samples_are_cycles_with_their_answers(options: dict) -> None:
    task = Depo(**options)
    arrays = task.sample(0, np.arange(150))
    assert arrays.keys() == {"tokens", "targets"}
    assert arrays["tokens"].shape == (150, task.sequence_length)
    for row in range(150):
        edges, queries = read(task, whole(arrays, row))
        n = len(edges)
        assert 3 <= n <= task.nodes
        assert len({x for x, _ in edges}) == n
        visited = {walk(edges, edges[0][0], k) for k in range(n)}
        assert len(visited) == n  # one cycle
        assert all(task.lengths[0] <= len(name) <= task.lengths[1] for name in visited)
        assert len(queries) == min(task.queries, n) == len({start for _, start, _ in queries})
        assert all(answer == walk(edges, start, k) for k, start, answer in queries)


@pytest.mark.parametrize("options", [DEPO1, DEPO2])
def test_evaluation_asks_one_query_of_the_longest_cycles(options: dict) -> None:
    task = Depo(**options)
    arrays = task.evaluation("test", 20)
    assert np.bincount(arrays["group"]).tolist() == [20] * task.hops
    assert (arrays["answer"][arrays["scored"]] == 0).all()
    for row, group in enumerate(arrays["group"].tolist()):
        edges, ((k, start, answer),) = read(task, whole(arrays, row))
        assert (len(edges), task.groups[group]) == (task.nodes, f"hops_{k}")
        assert answer == walk(edges, start, k)
        targets, scored = arrays["targets"][row], arrays["scored"][row]
        assert tuple(targets[scored].tolist()) == answer
        assert targets[targets != -100].tolist() == [task.ans, *answer]


def test_the_loss_is_on_answers_or_on_all_of_the_row() -> None:
    some, everything = Depo(**DEPO1).sample(0, np.arange(40)), Depo(**DEPO1, loss="all").sample(0, np.arange(40))
    assert (some["tokens"] == everything["tokens"]).all()
    for tokens, one, other in zip(some["tokens"], some["targets"], everything["targets"], strict=True):
        last = np.flatnonzero(one != -100)[-1]
        assert (other[:last] == tokens[1 : last + 1]).all()
        assert (other[last + 1 :] == -100).all()
        assert (one[one != -100] == other[one != -100]).all()


def parts(arrays: dict, row: int, bos: int) -> list[tuple[list[int], list[int]]]:
    """A window's problems, tokens and targets, cut where a <bos> opens one."""
    starts = np.flatnonzero(arrays["tokens"][row] == bos)
    assert starts[0] == 0
    cuts = [np.split(arrays[key][row], starts[1:]) for key in ("tokens", "targets")]
    return [(one.tolist(), other.tolist()) for one, other in zip(*cuts, strict=True)]


@pytest.mark.parametrize("options", [DEPO1, DEPO2, DEPO1 | {"loss": "all"}])
def test_a_window_holds_problems_one_after_another_and_the_last_is_cut(options: dict) -> None:
    task = Depo(**options, window=200)
    arrays, most = task.sample(0, np.arange(30)), 200 // task._length(3, task.lengths[0]) + 1
    assert arrays["tokens"].shape == (30, task.sequence_length) == (30, 200)
    alone = Depo(**options).sample(0, np.arange(30 * most))
    for row in range(30):
        problems = parts(arrays, row, task.bos)
        assert len(problems) > 1
        sizes = np.array([len(tokens) for tokens, _ in problems])
        assert (arrays["documents"][row] == np.repeat(np.arange(len(sizes)), sizes)).all()
        for place, (tokens, targets) in enumerate(problems[:-1]):
            edges, queries = read(task, tokens)
            assert all(answer == walk(edges, start, k) for k, start, answer in queries)
            assert tokens == whole(alone, row * most + place)
            end = len(tokens) - 1
            assert targets == [*alone["targets"][row * most + place][:end].tolist(), -100]  # nothing predicts a <bos>
        cut = problems[-1][0]
        assert cut == alone["tokens"][row * most + len(problems) - 1][: len(cut)].tolist()
    free = Depo(**options, window=200, mask_problems=False).sample(0, np.arange(30))
    assert free.keys() == {"tokens", "targets"}
    assert (free["tokens"] == arrays["tokens"]).all()


def test_a_window_does_not_depend_on_the_others_and_evaluation_is_of_single_problems() -> None:
    task = Depo(**DEPO1, window=100)
    many, one = task.sample(3, np.arange(40)), task.sample(3, np.array([17]))
    assert all((many[key][17] == one[key][0]).all() for key in one)
    packed, single = task.evaluation("test", 5), Depo(**DEPO1).evaluation("test", 5)
    assert all((packed[key] == single[key]).all() for key in single)
    with pytest.raises(ValueError, match=r"window = 40: must be an integer ≥ 73"):
        Depo(**DEPO1, window=40)


def test_laws_are_those_of_the_literature() -> None:
    """Sizes: tasks.md §0.4 and §1; k uniform; starts and edges in random order; 13.3 % of 375 names have one token."""
    law = Depo(nodes=24, letters=24).law
    assert law[[0, -1]] == pytest.approx([0.0918, 0.0251], abs=1e-4)
    means = [Depo(nodes=n, letters=n).law @ np.arange(3, n + 1) for n in (24, 75, 125, 225, 375)]
    assert means == pytest.approx([11.1, 27.5, 42.3, 70.1, 109.5], abs=0.06)
    task = Depo(nodes=24, letters=50, shortest=1, longest=2)
    rows = [read(task, whole(arrays, i)) for arrays in [task.sample(0, np.arange(1500))] for i in range(1500)]
    sizes = np.bincount([len(edges) for edges, _ in rows], minlength=25)[3:]
    assert sizes / 1500 == pytest.approx(task.law, abs=0.025)
    hops = [k for _, queries in rows for k, _, _ in queries]
    assert np.bincount(hops)[1:] / len(hops) == pytest.approx([1 / 8] * 8, abs=0.01)
    wraps = [k >= len(edges) for edges, queries in rows for k, _, _ in queries]
    assert np.mean(wraps) == pytest.approx(0.115, abs=0.01)  # on around the cycle, as published
    place = [[x for x, _ in edges].index(queries[0][1]) / len(edges) for edges, queries in rows if len(edges) > 9]
    assert np.mean(place) == pytest.approx(0.47, abs=0.05)
    for nodes, share in ((24, 0.47), (225, 0.215), (300, 0.165), (375, 0.133)):
        task = Depo(nodes=nodes, letters=50, shortest=1, longest=2, sizes="largest")
        names = task._cycles(0, "laws", np.arange(100), np.full(100, nodes), "train").names
        assert (names < 50).mean() == pytest.approx(share, abs=0.02)
        half = nodes // 2  # where a name lies on the cycle says nothing of its length
        assert (names[:, :half] < 50).mean() == pytest.approx((names[:, half:] < 50).mean(), abs=0.04)


def test_splits_share_no_cycle_whatever_is_asked() -> None:
    task = Depo(nodes=5, hops=3, letters=6)  # 40, 90 and 144 cycles of 3, 4 and 5 names

    def cycles(arrays: dict) -> set[frozenset]:
        return {frozenset(read(task, whole(arrays, row))[0]) for row in range(len(arrays["tokens"]))}

    train = set().union(*(cycles(task.sample(seed, np.arange(1500))) for seed in range(2)))
    val, test = (cycles(task.evaluation(split, 200)) for split in ("val", "test"))
    assert min(len(train), 8 * len(val), 8 * len(test)) > 80
    assert not (train & val or train & test or val & test)


@pytest.mark.parametrize("options", [DEPO1, DEPO2])
def test_a_sample_is_a_function_of_seed_and_index(options: dict) -> None:
    task = Depo(**options)
    all_of_them, part = task.sample(1, np.arange(60)), Depo(**options).sample(1, np.array([41, 3]))
    for key in all_of_them:
        assert (all_of_them[key][[41, 3]] == part[key]).all()
    assert (task.sample(2, np.arange(60))["tokens"] != all_of_them["tokens"]).any(axis=1).all()


def test_floors_are_what_a_look_at_the_starts_edges_leaves() -> None:
    """Measured: a guess among the names of the prompt that no edge holds together with the start."""
    task = Depo(nodes=6, hops=7, letters=30)
    floors = task.floors()
    arrays = task.evaluation("val", 300)
    right = np.zeros(8)
    for row in range(len(arrays["tokens"])):
        edges, ((k, start, answer),) = read(task, whole(arrays, row))
        beside = {name for edge in edges if start in edge for name in edge}
        left = {x for x, _ in edges} - (beside if k > 1 else {start})
        right[k] += (answer in left) / len(left)
    for k in (1, 2, 3, 4):
        assert floors[f"accuracy/hops_{k}"]["value"] == pytest.approx(right[k] / 300)
    assert right[5:].tolist() == [0, 0, 0]  # one back, none, one on: who sees that is always right
    assert [floors[f"accuracy/hops_{k}"]["value"] for k in (5, 6, 7)] == [1, 1, 1]
    assert set(floors) == {"accuracy", *(f"accuracy/{group}" for group in task.groups)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nodes": 2}, "nodes = 2: must be an integer from 3 to 4096"),
        ({"hops": 0}, "hops = 0: must be an integer from 1 to 64"),
        ({"letters": 8}, "letters = 8: make 8 names; must make from nodes = 16 to 1048576"),
        ({"shortest": 2}, "longest = 1: must be an integer from 2 to 16"),
        ({"sizes": "small"}, "sizes = 'small': must be one of weighted, uniform, largest"),
        ({"loss": "some"}, "loss = 'some': must be one of answer, all"),
    ],
)
def test_bad_values_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Depo(**arguments)


def test_too_few_names_for_a_split_are_named() -> None:
    with pytest.raises(ValueError, match="letters = 3: make 3 names, too few for .* to have cycles of 3"):
        for split in ("val", "test"):
            Depo(nodes=3, letters=3).evaluation(split, 4)
