"""The claims that studies test. Beside `definition.py`, which refuses a study that names one that is not here."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ouro_lab.config import ConfigError, nearest

FILE = Path(__file__).parent / "claims.yaml"
NEEDS = ("weights", "gpus")


@dataclass(frozen=True)
class Claim:
    """A row of the ledger.

    published: the figure or finding as printed. needs: of `NEEDS`, what an answer needs that a laptop lacks.
    parameters, tokens: of the smallest published model of the comparison. tests: files that check all of the statement.
    law: the scaling law whose fit speaks for it, instead of a contrast. together: what speaks is the sum of that
    law's loops, weighted by the exit distribution.
    """

    id: str
    statement: str
    published: str
    source: str
    needs: str | None = None
    parameters: int | None = None
    tokens: int | None = None
    tests: tuple[str, ...] = ()
    law: str | None = None
    together: bool = False

    def __post_init__(self) -> None:
        if self.needs is not None and self.needs not in NEEDS:
            raise ConfigError(f"claim {self.id}: needs = {self.needs}: {nearest(str(self.needs), NEEDS)}, null")
        if self.together and not str(self.law).startswith("ouro_stepwise"):
            raise ConfigError(
                f"claim {self.id}: together = true: needs a law of each loop, ouro_stepwise, not {self.law}"
            )


@cache
def known() -> dict[str, Claim]:
    """By id, in the file's order; an id written twice is an error of the reader's."""
    content = OmegaConf.to_container(OmegaConf.load(FILE))
    assert isinstance(content, dict)
    return {str(key): _claim(str(key), dict(fields)) for key, fields in content.items()}


def check_ids(path: str, ids: Iterable[str]) -> None:
    """Raises ConfigError for the first id of `path` (`study.claim`) that is not in the ledger."""
    for claim in ids:
        if claim not in known():
            raise ConfigError(f"{path}: {claim} is no claim of the ledger; {nearest(str(claim), known())}")


def _claim(key: str, fields: dict[str, Any]) -> Claim:
    tests = tuple(fields.pop("tests", None) or ())
    return Claim(key, tests=tests, **fields)
