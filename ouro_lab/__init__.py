"""Ouro Lab: controlled experiments on looped language models."""

from typing import Any

__version__ = "0.1.0"


def load(study: str) -> Any:
    """A study's runs and curves as DataFrames, from tracked runs or committed evidence (analysis.runs.load)."""
    from analysis.runs import load as load_runs

    return load_runs(study)
