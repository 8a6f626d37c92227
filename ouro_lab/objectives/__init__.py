from ouro_lab.objectives.cross_entropy import (
    IGNORE,
    chunk_rows,
    compile_losses,
    token_cross_entropy,
    weighted_cross_entropy,
)
from ouro_lab.objectives.exit import exit_distribution, log_prior, with_exit_probability
from ouro_lab.objectives.losses import KLToPrior, LastLoop, MeanOverLoops, MixtureOfLogits, StageOne, expected_loss
from ouro_lab.objectives.stage_two import StageTwo

__all__ = [
    "IGNORE",
    "KLToPrior",
    "LastLoop",
    "MeanOverLoops",
    "MixtureOfLogits",
    "StageOne",
    "StageTwo",
    "exit_distribution",
    "expected_loss",
    "chunk_rows",
    "compile_losses",
    "log_prior",
    "token_cross_entropy",
    "weighted_cross_entropy",
    "with_exit_probability",
]
