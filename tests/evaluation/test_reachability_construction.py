"""The log-depth construction against breadth-first search: on every small graph, larger ones, and without its fixes."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from ouro_lab.evaluation.reachability_construction import loops_needed, loops_table, reachability_by_loops


def shortest(graph: list[list[bool]]) -> list[list[float]]:
    """Lengths of shortest ways by breadth-first search, ∞ where there is none."""
    size, far = len(graph), []
    for start in range(size):
        found, queue = {start: 0}, [start]
        for u in queue:
            for v in range(size):
                if graph[u][v] and v not in found:
                    found[v] = found[u] + 1
                    queue.append(v)
        far.append([found.get(v, math.inf) for v in range(size)])
    return far


def distances(graphs: Tensor) -> Tensor:
    return torch.tensor([shortest(graph) for graph in graphs.tolist()])


def every_graph(size: int) -> Tensor:
    """All directed graphs without loops, [2^(n² − n), n, n]."""
    places = [(u, v) for u in range(size) for v in range(size) if u != v]
    graphs = torch.zeros(2 ** len(places), size, size, dtype=torch.bool)
    for index, edges in enumerate(itertools.product((False, True), repeat=len(places))):
        for (u, v), there in zip(places, edges, strict=True):
            graphs[index, u, v] = there
    return graphs


def random_graphs(count: int, size: int, mean_degree: float, seed: int = 0) -> Tensor:
    draws = torch.rand(count, size, size, generator=torch.Generator().manual_seed(seed))
    return (draws < mean_degree / size) & ~torch.eye(size, dtype=torch.bool)


@pytest.mark.parametrize("beta", [math.inf, 30.0])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_small_graph_is_connected_up_to_the_stated_distance_and_no_further(size: int, beta: float) -> None:
    graphs = every_graph(size)
    far = distances(graphs)
    for loop, reached in enumerate(reachability_by_loops(graphs, 3, beta=beta), start=1):
        assert torch.equal(reached, far <= 2**loop)


@pytest.mark.parametrize("beta", [math.inf, 30.0])
def test_random_larger_graphs(beta: float) -> None:
    for size, mean_degree in ((12, 1.3), (24, 1.5), (40, 1.2)):
        graphs = random_graphs(20, size, mean_degree)
        far = distances(graphs)
        assert far[far.isfinite()].max() > 4
        for loop, reached in enumerate(reachability_by_loops(graphs, 6, beta=beta), start=1):
            assert torch.equal(reached, far <= 2**loop)


def test_a_graph_in_the_weights_costs_one_loop_and_joins_the_prompts() -> None:
    """All pairs of graphs of three vertices, and larger random ones: nothing false, all within 2^(t − 1) edges."""
    small = every_graph(3)
    cases = [(small, hidden) for hidden in small]
    cases += [(random_graphs(10, 24, 0.8, seed), random_graphs(1, 24, 0.8, 50 + seed)[0]) for seed in range(5)]
    for context, hidden in cases:
        far = distances(context | hidden)
        diameter = int(far[far.isfinite()].max())
        bound = math.ceil(math.log2(max(diameter, 1))) + 1
        found = reachability_by_loops(context, bound, hidden)
        assert torch.equal(found[-1], far.isfinite())
        for loop, reached in enumerate(found, start=1):
            assert reached[far <= 2 ** (loop - 1)].all()
            assert not reached[far > 2**loop].any()


def wrong(beta: float = math.inf, **options: bool | float) -> float:
    """Share of pairs that are wrong after more loops than needed, on random graphs of 24 vertices."""
    graphs = random_graphs(20, 24, 1.5)
    reached = reachability_by_loops(graphs, 6, beta=beta, **options)[-1]
    return float((reached != distances(graphs).isfinite()).double().mean())


def test_without_any_of_the_fixes_it_fails() -> None:
    assert wrong() == wrong(beta=30.0) == 0
    assert wrong(aligned=False) > 0.2
    assert wrong(self_loops=False) > 0.2
    assert wrong(beta=30.0, threshold=0.0) > 0.2
    assert wrong(threshold=0.0) == 0  # hard attention gives false entries no weight at all


def test_a_threshold_that_cannot_separate_is_named() -> None:
    graph = torch.zeros(1, 4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"threshold = 1e-06: must be above n·e\^−β = 0.000182 and below 1/n = 0.25"):
        reachability_by_loops(graph, 1, beta=10.0)
    with pytest.raises(ValueError, match=r"threshold = 0.5: must be above .* \(n = 4, β = inf\)"):
        reachability_by_loops(graph, 1, threshold=0.5)


def test_loops_needed_are_the_logarithm_of_the_distance() -> None:
    for distance in range(1, 34):
        assert loops_needed(distance) == max(1, math.ceil(math.log2(distance)))
        assert loops_needed(distance, in_weights=True) == math.ceil(math.log2(distance)) + 1


def test_table_is_markdown_with_a_row_per_number_of_loops() -> None:
    lines = loops_table(16).splitlines()
    assert lines[-1] == "| 9–16 | 4 | 5 | 5 | 9–16 |"
    assert len(lines) == 2 + 5
    assert {line.count("|") for line in lines} == {6}
