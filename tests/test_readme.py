"""What README.md says to type is typed: every `make` line of its code blocks, with SMOKE=1 and this interpreter."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ouro_lab.config import ROOT

BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
# Not run here: the tests themselves, ten minutes of timing, and a server that ends when one stops it.
LONG = ("make test", "make bench", "make ui", "make setup")
REFUSED = ("make evidence",)  # a shortened study is no evidence, and says so


def commands() -> list[str]:
    lines = [line for block in BLOCK.findall((ROOT / "README.md").read_text()) for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.startswith("make ")]


def type_in(command: str, runs: Path) -> subprocess.CompletedProcess:
    """As a person would, but for the environment: this interpreter, which is ready."""
    environment = os.environ | {"SMOKE": "1", "OURO_RUNS": str(runs), "OMP_NUM_THREADS": "1"}
    environment.pop("MAKEFLAGS", None)
    stamp = runs.parent / "ready"  # stands for the environment's stamp, and -o keeps make from remaking it
    stamp.touch()
    words = [*shlex.split(command), f"PY={sys.executable}", f"READY={stamp}", "-o", str(stamp)]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all lines, as they are typed one after the other."""
    return tmp_path_factory.mktemp("runs")


def test_the_readme_names_the_verbs():
    typed = {command.split()[1] for command in commands()}
    assert {"experiment", "test", "list", "status", "report", "power", "match", "evidence", "claims", "ui"} <= typed


@pytest.mark.parametrize(("verb", "words"), [("power", "-m analysis.power"), ("match", "-m ouro_lab match")])
def test_what_is_not_typed_asks_for_its_verb(verb, words):
    done = subprocess.run(["make", "-n", verb, "NAME=p_hop"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert words in done.stdout


def is_slow(place: int, command: str) -> bool:
    """The second and third study, what composes every study, and two verbs that test_verbs.py and test_power.py ask in
    one process: imports are most of each line's time.
    """
    verb = command.split()[1]
    return verb in ("list", "claims", "power", "match") or (verb == "experiment" and place > 0)


TYPED = [command for command in commands() if not command.startswith(LONG)]


@pytest.mark.parametrize(
    "command",
    [pytest.param(one, marks=[pytest.mark.slow] if is_slow(i, one) else []) for i, one in enumerate(TYPED)],
)
def test_a_command_of_the_readme_works(command, runs):
    before = git_status()
    done = type_in(command, runs)
    if command.startswith(REFUSED):
        assert done.returncode == 2
        assert [line for line in done.stderr.splitlines() if line.startswith("error:")]
    else:
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert "Traceback" not in done.stderr
    assert {path.name for path in runs.iterdir()} <= {"smoke"}
    assert git_status() == before


def git_status() -> str:
    done = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout
