from ouro_lab.compute.budget import Budget
from ouro_lab.compute.cost import Cost, Flops, Parameters, training_cost
from ouro_lab.compute.match import Match, MismatchError, check, compare, format_table
from ouro_lab.compute.measure import measured_cost

__all__ = [
    "Budget",
    "Cost",
    "Flops",
    "Match",
    "MismatchError",
    "Parameters",
    "check",
    "compare",
    "format_table",
    "measured_cost",
    "training_cost",
]
