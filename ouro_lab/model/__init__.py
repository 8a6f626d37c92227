from ouro_lab.model.backbones import iso_flop, iso_parameter, looped, ouro
from ouro_lab.model.config import ModelConfig
from ouro_lab.model.transformer import LoopedTransformer, LoopState

__all__ = ["LoopState", "LoopedTransformer", "ModelConfig", "iso_flop", "iso_parameter", "looped", "ouro"]
