"""Synthetic tasks: a task is what `protocol.Task` says."""

from ouro_lab.data.tasks.p_hop import PHop
from ouro_lab.data.tasks.protocol import Task

__all__ = ["PHop", "Task"]
