"""Synthetic tasks: a task is what `protocol.Task` says."""

from ouro_lab.data.tasks.addition import Addition
from ouro_lab.data.tasks.bio_s import BioS
from ouro_lab.data.tasks.capo import BioD
from ouro_lab.data.tasks.composition import Composition
from ouro_lab.data.tasks.depo import Depo
from ouro_lab.data.tasks.igsm import IGSM
from ouro_lab.data.tasks.mano import Mano
from ouro_lab.data.tasks.multihop import MultiHop
from ouro_lab.data.tasks.p_hop import PHop
from ouro_lab.data.tasks.protocol import Task
from ouro_lab.data.tasks.reachability import Reachability
from ouro_lab.data.tasks.table import Table

__all__ = [
    "Addition",
    "BioD",
    "BioS",
    "Composition",
    "Depo",
    "IGSM",
    "Mano",
    "MultiHop",
    "PHop",
    "Reachability",
    "Table",
    "Task",
]
