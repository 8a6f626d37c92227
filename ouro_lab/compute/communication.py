"""What a device sends in an optimiser step, in bytes, and takes in. Of a tensor, N ranks in a ring send (N − 1)/N."""

from dataclasses import dataclass

FLOAT32 = 4


@dataclass(frozen=True)
class Volume:
    """Bytes by kind: weights that are gathered, gradients that are summed."""

    gathered: float = 0.0
    summed: float = 0.0

    @property
    def total(self) -> float:
        return self.gathered + self.summed


def replicated(parameters: int, world: int) -> Volume:
    """DDP: an all-reduce of the gradients in float32, once per step, whatever the micro-batches."""
    return Volume(summed=2 * _share(world) * FLOAT32 * parameters)


def sharded(
    blocks: int, rest: int, world: int, loops: int, micro_batches: int = 1, reshard: bool = True, gather_bytes: int = 4
) -> Volume:
    """FSDP2 with a unit per block and one for the rest (embedding, head, norm, gate), which is gathered once.

    blocks, rest: parameters. Let go of after each use (`reshard`), a block is gathered for every loop forward and
    again backward, 2·T times; else once forward and T − 1 times backward, as its backward pass lets go of it. Its
    gradient is summed once: autograd adds the loops' first, in the dtype that the block was gathered in. To compute a
    loop again (`recompute`) gathers nothing more.
    """
    times = 2 * loops if reshard else loops
    gathered = times * gather_bytes * blocks + FLOAT32 * rest
    return Volume(micro_batches * _share(world) * gathered, micro_batches * _share(world) * FLOAT32 * (blocks + rest))


def _share(world: int) -> float:
    return (world - 1) / world
