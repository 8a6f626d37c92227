"""Checkpoints of others, in and out."""

from ouro_lab.interop.ouro import read_ouro, write_ouro
from ouro_lab.interop.trunk import Trunk, export_trunk, open_trunk

__all__ = ["Trunk", "export_trunk", "open_trunk", "read_ouro", "write_ouro"]
