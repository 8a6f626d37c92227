"""Ouro's log-depth reachability construction (claim C26; App. B.5, Theorems 1 and 2) as a layer that runs.

One layer with one attention head, applied in a loop: attention squares the reachability that the state holds, the MLP
adds the graph in the weights, and an elementwise threshold stands where a norm would. After t loops exactly the pairs
within 2^t edges of the prompt's graph are connected; with a graph in the weights, which attention sees only from the
second loop on, at least those within 2^(t−1) edges of the union: ⌈log₂ D⌉ + 1 loops for a diameter D, as claimed.

As printed the theorem's matrices do not do this. Three fixes, each an argument so that its absence can be seen:

- `aligned`: W_Q maps the adjacency block onto the vertex block, which W_K reads. As printed each keeps its block where
  it is: queries and keys have no coordinate in common, every score is 0 and attention uniform over all vertices.
- `self_loops`: every vertex reaches itself. Without, a vertex without an edge has only zero scores and attends to all.
- `threshold`: under softmax of finite β every vertex gets some weight, so that 1{x > 0} connects everything. A true
  entry is at least 1/n, all false ones together are below n·e^−β, and the threshold must lie between the two. Hard
  attention (β = ∞) needs none.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn


class ReachabilityLayer(nn.Module):
    """Maps states [B, n, 2n] to states; token i is the one-hot of vertex i, then column i: who reaches i.

    vertices: n. hidden: [n, n] bool from row to column, the graph in the weights. beta: inverse temperature of the
    softmax; ∞ is hard attention, uniform over the highest scores. Weights are float64: e^−30 is a false entry's weight.
    """

    def __init__(
        self,
        vertices: int,
        hidden: Tensor | None = None,
        beta: float = math.inf,
        threshold: float = 1e-6,
        aligned: bool = True,
        self_loops: bool = True,
    ) -> None:
        super().__init__()
        low, high = vertices * math.exp(-beta), 1 / vertices
        if threshold > 0 and not low < threshold < high:
            between = f"above n·e^−β = {low:.3g} and below 1/n = {high:.3g}"
            raise ValueError(f"threshold = {threshold:g}: must be {between} (n = {vertices}, β = {beta:g})")
        self.vertices, self.beta, self.threshold, self.self_loops = vertices, beta, threshold, self_loops
        eye = torch.eye(vertices, dtype=torch.float64)
        zero = torch.zeros_like(eye)
        graph = zero if hidden is None else hidden.double()
        keep_vertex, keep_column = _blocks(eye, zero, zero, zero), _blocks(zero, zero, zero, eye)
        self.key = nn.Buffer(keep_vertex)
        self.query = nn.Buffer(_blocks(zero, eye, zero, zero) if aligned else keep_column)
        self.value = nn.Buffer(keep_column)
        self.mlp = nn.Buffer(_blocks(zero, zero, (graph + eye * self_loops).clamp(max=1), zero))  # vertex → its column

    def embed(self, context: Tensor) -> Tensor:
        """The prompt's states [B, n, 2n] for graphs [B, n, n] bool, from row to column."""
        eye = torch.eye(self.vertices, dtype=torch.float64)
        columns = (context.double() + eye * self.self_loops).clamp(max=1).transpose(1, 2)
        return torch.cat([eye.expand_as(columns), columns], dim=2)

    def forward(self, states: Tensor) -> Tensor:
        scores = (states @ self.query.T) @ (states @ self.key.T).transpose(1, 2)  # [B, n, n]: is j in column i?
        mixed = self._weights(scores) @ (states @ self.value.T)  # [B, n, 2n]: the mean of those columns j
        return (states + mixed + states @ self.mlp.T > self.threshold).double()

    def _weights(self, scores: Tensor) -> Tensor:
        if math.isfinite(self.beta):
            return torch.softmax(self.beta * scores, dim=-1)
        highest = (scores == scores.amax(dim=-1, keepdim=True)).double()
        return highest / highest.sum(dim=-1, keepdim=True)

    def reached(self, states: Tensor) -> Tensor:
        """[B, n, n] bool, from row to column."""
        return states[:, :, self.vertices :].transpose(1, 2) > 0


def _blocks(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """The [2n, 2n] matrix of four [n, n] blocks, a and b above."""
    return torch.cat([torch.cat([a, b], dim=1), torch.cat([c, d], dim=1)], dim=0)


def reachability_by_loops(context: Tensor, loops: int, hidden: Tensor | None = None, **options: Any) -> list[Tensor]:
    """What each loop 1 … `loops` of the construction connects, [B, n, n] bool each, for graphs [B, n, n] bool.

    hidden: [n, n] bool, in the weights. options: of `ReachabilityLayer`.
    """
    layer = ReachabilityLayer(context.shape[-1], hidden, **options)
    states, found = layer.embed(context), []
    for _ in range(loops):
        states = layer(states)
        found.append(layer.reached(states))
    return found


def loops_needed(distance: int, in_weights: bool = False) -> int:
    """Loops until the construction connects the ends of a path of `distance` edges, found by running it.

    in_weights: every edge is in the weights and the prompt's graph is empty, which costs one loop more.
    """
    path = torch.diag(torch.ones(distance, dtype=torch.bool), 1)  # [n, n], n = distance + 1
    context, hidden = (torch.zeros_like(path), path) if in_weights else (path, None)
    found = reachability_by_loops(context[None], distance + 1, hidden)
    return next(loop for loop, reached in enumerate(found, start=1) if reached[0, 0, -1])


def loops_table(most: int = 32) -> str:
    """Markdown: loops needed for distances 1 … `most`, a row per range of distances that need equally many.

    The last column is what one edge per loop would need, as a chain of continuous thoughts does.
    """
    rows: dict[tuple[int, int], list[int]] = {}
    for distance in range(1, most + 1):
        rows.setdefault((loops_needed(distance), loops_needed(distance, in_weights=True)), []).append(distance)
    lines = [
        "| distance d | loops, graph in the prompt | loops, graph in the weights | ⌈log₂ d⌉ + 1 | one edge a loop |",
        "|---|---|---|---|---|",
    ]
    for (prompt, weights), found in rows.items():
        span = f"{found[0]}–{found[-1]}" if len(found) > 1 else f"{found[0]}"
        lines.append(f"| {span} | {prompt} | {weights} | {math.ceil(math.log2(found[-1])) + 1} | {span} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(loops_table())
