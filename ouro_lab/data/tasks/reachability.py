"""Is there a way from u to v in the graph that the prompt lists? By distance (Ouro §6 and App. B.5; tasks.md §10).

The published experiment on this question draws undirected Erdős–Rényi graphs of mean degree 1.7 and a random pair, so
that up to 39 % of its positives are single edges. Here distances are uniform, and the answer is a coin whatever the
graph.
"""

import numpy as np
from numpy.typing import NDArray

from ouro_lab.data.random import Bits, Ints, bits, integers, one_of
from ouro_lab.data.tasks.protocol import IGNORE, TRAIN, Arrays, Floors, check_choice, check_range
from ouro_lab.data.tasks.shortcuts import best_shortcut
from ouro_lab.data.tasks.splits import belongs

FAR = np.int16(np.iinfo(np.int16).max)  # the distance where there is no way
QUERIES = ("last", "first")
_TRIES = 2000  # graphs per sample, after which a distance counts as out of reach
_FLOOR_SAMPLES = 3000  # per distance

Bools = NDArray[np.bool_]
Steps = NDArray[np.int16]


class Reachability:
    """Tokens: the edges as pairs of vertices in random order, u, v, "="; the answer, no or yes, is predicted at "=".

    Vocabulary: vertices, "=", no, yes. Yes at distance d: the shortest way has d edges. No at distance d: there is no
    way, but one meets new vertices for ⌈d/2⌉ steps onwards from u and backwards from v; so up to where two searches
    from both ends would meet at distance d, neither has come to its end. Graphs are uniform among those with `edges`
    different edges (no loops) that have a pair of either kind: the graph alone tells nothing. The answer is a coin, and
    the pair uniform among the graph's pairs of that kind.

    Groups: `distance_d`, balanced; beside it `yes_d` and `no_d`, which have no floor, as a constant answer scores 1.

    directed: whether an edge leads only from its first vertex to its second. query: whether u and v come last (as in
    the published code) or first, where a causal model reads the edges knowing them. Splits are disjoint by a hash of
    the graph: no graph of validation or test is in training under any order of its edges or any pair.
    """

    def __init__(
        self, vertices: int = 20, edges: int = 28, max_distance: int = 8, directed: bool = True, query: str = "last"
    ) -> None:
        check_range("vertices", vertices, 3, 256)
        pairs = vertices * (vertices - 1) // (1 if directed else 2)
        check_range("max_distance", max_distance, 1, vertices - 1)
        check_range("edges", edges, max_distance, pairs)
        check_choice("query", query, QUERIES)
        self.vertices, self.edges, self.max_distance = vertices, edges, max_distance
        self.directed, self.query = directed, query
        self.equals, self.no, self.yes = vertices, vertices + 1, vertices + 2
        self.vocab_size, self.sequence_length = vertices + 3, 2 * edges + 3
        kinds = ("distance", "no", "yes")
        self.groups: tuple[str, ...] = tuple(f"{kind}_{d}" for kind in kinds for d in range(1, max_distance + 1))
        self._ends = np.argwhere(
            ~np.eye(vertices, dtype=bool) if directed else np.triu(np.ones((vertices,) * 2), 1) > 0
        )
        self._floors: Floors | None = None

    def sample(self, seed: int, indices: Ints, split: str = TRAIN) -> Arrays:
        """Distances uniform on 1 … max_distance, yes and no each with probability one half."""
        words = bits(seed, f"reachability/{split}/kind", indices, 2)
        return self._draw(
            seed, indices, split, 1 + integers(words[:, 0], self.max_distance), integers(words[:, 1], 2) > 0
        )

    def evaluation(self, split: str, size: int) -> Arrays:
        """`size` questions per distance, every second one a yes."""
        indices = np.arange(size * self.max_distance)
        return self._draw(0, indices, split, 1 + indices // size, indices % size % 2 == 0)

    def floors(self) -> Floors:
        """Held-out accuracy per distance of the majority answer given one of `_fields`; none takes a search."""
        if self._floors is None:
            arrays = self.evaluation("floors", _FLOOR_SAMPLES)
            fields, answers = self._fields(arrays["tokens"]), arrays["targets"][:, -1] - self.no
            best = [best_shortcut(fields, answers, arrays["group"][:, 0] == d) for d in range(self.max_distance)]
            per_distance = {
                f"accuracy/{group}": {"value": value, "what": f"majority answer given the distance and {field}"}
                for group, (value, field) in zip(self.groups, best, strict=False)
            }
            mean = float(np.mean([value for value, _ in best]))
            self._floors = {"accuracy": {"value": mean, "what": "mean of the floors of all distances"}, **per_distance}
        return self._floors

    def adjacency(self, tokens: Ints) -> Bools:
        """[B, n, n], from row to column, of prompts [B, S]."""
        first = 0 if self.query == "last" else 2
        pairs = tokens[:, first : first + 2 * self.edges].reshape(len(tokens), self.edges, 2)
        return self._adjacency(pairs[:, :, 0], pairs[:, :, 1])

    def pair(self, tokens: Ints) -> tuple[Ints, Ints]:
        """u and v [B] of prompts [B, S]."""
        first = 2 * self.edges if self.query == "last" else 0
        return tokens[:, first], tokens[:, first + 1]

    def _draw(self, seed: int, indices: Ints, split: str, distance: Ints, answer: Bools) -> Arrays:
        """A graph of another split, or without both kinds of pairs, is drawn again, from the sample's next stream."""
        prompts = np.empty((len(indices), self.sequence_length), np.int64)
        waiting = np.arange(len(indices))
        coins = 0 if self.directed else self.edges
        for attempt in range(_TRIES):
            stream = f"reachability/{split}/{attempt}"
            words = bits(seed, stream, indices[waiting], 1 + len(self._ends) + coins)
            starts, ends = self._edges(words[:, 1:])
            graph = self._adjacency(starts, ends)
            yes, no = self._pairs(distances(graph), distance[waiting])
            fits = yes.any(axis=1) & no.any(axis=1) & belongs(graph.reshape(len(graph), -1).astype(np.int64), split)
            chosen = one_of(np.where(answer[waiting, None], yes, no)[fits], words[fits, 0])
            prompts[waiting[fits]] = self._prompts(starts[fits], ends[fits], chosen)
            waiting = waiting[~fits]
            if not len(waiting):
                return self._arrays(prompts, distance, answer)
        raise ValueError(
            f"max_distance = {self.max_distance}: hardly any graph of {self.vertices} vertices and {self.edges} edges"
            f" has pairs with yes and with no at distance {int(distance[waiting].max())}; must be smaller"
        )

    def _edges(self, words: Bits) -> tuple[Ints, Ints]:
        """Both ends [B, E] of different edges in random order; the direction of an undirected one is a coin's."""
        picked = np.argsort(words[:, : len(self._ends)], axis=1, kind="stable")[:, : self.edges]
        starts, ends = self._ends[picked].transpose(2, 0, 1)
        if self.directed:
            return starts, ends
        turned = integers(words[:, len(self._ends) :], 2) > 0
        return np.where(turned, ends, starts), np.where(turned, starts, ends)

    def _adjacency(self, starts: Ints, ends: Ints) -> Bools:
        graph = np.zeros((len(starts), self.vertices, self.vertices), bool)
        rows = np.arange(len(starts))[:, None]
        graph[rows, starts, ends] = True
        if not self.directed:
            graph[rows, ends, starts] = True
        return graph

    def _pairs(self, far: Steps, distance: Ints) -> tuple[Bools, Bools]:
        """[B, n²] each: the pairs (u, v) with a yes and with a no at `distance` [B]; the class says what they are."""
        steps = np.where(far == FAR, 0, far)
        half = (distance[:, None] + 1) // 2
        onwards, backwards = steps.max(axis=2) >= half, steps.max(axis=1) >= half  # [B, n]
        apart = (far == FAR) & onwards[:, :, None] & backwards[:, None, :]
        return (far == distance[:, None, None]).reshape(len(far), -1), apart.reshape(len(far), -1)

    def _prompts(self, starts: Ints, ends: Ints, chosen: Ints) -> Ints:
        edges = np.stack([starts, ends], axis=2).reshape(len(starts), 2 * self.edges)
        pair = np.stack(np.divmod(chosen, self.vertices), axis=1)
        equals = np.full((len(starts), 1), self.equals)
        return np.concatenate([edges, pair, equals] if self.query == "last" else [pair, edges, equals], axis=1)

    def _arrays(self, prompts: Ints, distance: Ints, answer: Bools) -> Arrays:
        targets = np.full_like(prompts, IGNORE)
        targets[:, -1] = self.no + answer
        group = np.stack([distance - 1, distance - 1 + (1 + answer) * self.max_distance], axis=1)
        return {"tokens": prompts, "targets": targets, "scored": targets != IGNORE, "group": group}

    def _fields(self, tokens: Ints) -> dict[str, Ints]:
        """What a reader without a search can use, each as one integer per prompt; the graph alone is of no use."""
        graph, rows = self.adjacency(tokens), np.arange(len(tokens))
        u, v = self.pair(tokens)
        out, into = graph.sum(axis=2)[rows, u], graph.sum(axis=1)[rows, v]
        back, on = graph.sum(axis=1)[rows, u], graph.sum(axis=2)[rows, v]
        size = self.vertices
        return {
            "nothing else": np.zeros(len(tokens), np.int64),
            "the pair": u * size + v,
            "edges out of u": out,
            "edges into v": into,
            "edges out of u and into v": out * size + into,
            "edges of u and v both ways": ((out * size + into) * 4 + np.minimum(back, 3)) * 4 + np.minimum(on, 3),
        }


def distances(graph: Bools) -> Steps:
    """Shortest ways' lengths [B, n, n] in graphs [B, n, n], by breadth; `FAR` where there is no way."""
    reached = np.broadcast_to(np.eye(graph.shape[1], dtype=bool), graph.shape).copy()
    far = np.where(reached, np.int16(0), FAR)
    edges = graph.astype(np.float32)  # a product of float32 matrices is quick, of booleans it is not
    for step in range(1, graph.shape[1]):
        new = (reached.astype(np.float32) @ edges > 0) & ~reached
        if not new.any():
            break
        far[new] = step
        reached |= new
    return far
