"""Data as pure functions of (seed, global sample index). Knows no model."""

from ouro_lab.data.capacity import CapacityData, CapacityMetrics
from ouro_lab.data.corpus import Sotu, TextFiles, WikipediaLeads
from ouro_lab.data.datamodules import TaskData
from ouro_lab.data.decontamination import Decontamination
from ouro_lab.data.dialogue_data import DialogueData
from ouro_lab.data.dialogues import DialogueFile, SotuQuestions
from ouro_lab.data.hub import HuggingFace
from ouro_lab.data.metrics import EvaluationMetrics
from ouro_lab.data.mixture import Mixture
from ouro_lab.data.package_text import PackageText
from ouro_lab.data.questions import Questions
from ouro_lab.data.text_data import TextData
from ouro_lab.data.tokenizer import BPETokenizer, ByteTokenizer, SmolLM2Tokenizer

__all__ = [
    "BPETokenizer",
    "ByteTokenizer",
    "CapacityData",
    "CapacityMetrics",
    "Decontamination",
    "DialogueData",
    "DialogueFile",
    "EvaluationMetrics",
    "HuggingFace",
    "Mixture",
    "PackageText",
    "Questions",
    "SmolLM2Tokenizer",
    "Sotu",
    "SotuQuestions",
    "TaskData",
    "TextData",
    "TextFiles",
    "WikipediaLeads",
]
