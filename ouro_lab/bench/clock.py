"""How much longer a training step of one shape takes than of another, here: what equal wall clock needs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ouro_lab.bench.step import Step, random_batch
from ouro_lab.bench.timing import Effort, interleave, ratio
from ouro_lab.model import LoopedTransformer, ModelConfig
from ouro_lab.objectives import LastLoop
from ouro_lab.training.module import Objective


@dataclass(frozen=True)
class TimedStep:
    """batch: sequences of a micro-batch. objective: of shapes with loops; one loop has the last one's loss.

    Blocks are not compiled, so the ratio is that of runs which are not (`trainer.compile=false`, or short ones).
    """

    batch: int
    length: int
    vocab_size: int
    objective: Objective
    mixed: bool

    def batch_of_tokens(self) -> tuple[Tensor, Tensor]:
        return random_batch(self.vocab_size, self.batch, self.length)

    def of(self, config: ModelConfig) -> Step:
        model = LoopedTransformer(config)
        model.initialise(0)
        objective = self.objective if config.loops > 1 else LastLoop()

        def loss(tokens: Tensor, targets: Tensor) -> Tensor:
            return objective(model.loop_states(tokens), model.head_weight, targets)[0]

        return Step(model, loss, self)

    def ratio(self, above: ModelConfig, below: ModelConfig, rounds: int) -> float:
        """The median over rounds, both in one process by turns, on one thread as a run has."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            sides = {"above": self.of(above), "below": self.of(below)}
            return ratio(interleave(sides, Effort(rounds, warm=1)), "above", "below")
        finally:
            torch.set_num_threads(threads)
