"""The paper's benchmarks: what would be run, and one line where it cannot."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ouro_lab.data.tokenizer import ByteTokenizer
from ouro_lab.evaluation.benchmarks import CHOICE, main, read_choice
from ouro_lab.interop import Trunk, export_trunk
from ouro_lab.model import LoopedTransformer, ModelConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    model = LoopedTransformer(ModelConfig(257, 1, loops=2, width=8, heads=2))
    model.initialise(0)
    export_trunk(Trunk(model, ByteTokenizer(), None, ""), tmp_path / "trunk")
    return str(tmp_path / "trunk")


def test_shots_are_the_papers() -> None:
    shots = {benchmark.name: benchmark.shots for benchmark in read_choice(CHOICE)}
    paper = {"mmlu": 5, "mmlu_pro": 5, "bbh": 3, "arc_challenge": 25, "hellaswag": 10, "winogrande": 5, "gsm8k": 3}
    assert shots == paper | {"arc_easy": 8, "commonsense_qa": 10}


def test_it_says_what_it_would_run_and_runs_nothing(folder: str, capsys: pytest.CaptureFixture) -> None:
    assert main([folder, "--loops=3", "--only=gsm8k,mmlu"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "at 3 loops" in out[0] and len(out) == 3
    assert out[1].split() == ["gsm8k", "task", "gsm8k_cot,", "3", "shots,", "exact_match,strict-match"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "usage"), (["--loops=0"], "--loops=0"), (["--lops=2"], "--lops=2"), (["nowhere"], "source = nowhere"),
        (["--only=glue"], "only = glue: must be one of mmlu"),
    ],
)  # fmt: skip
def test_bad_words_are_one_line(words: list[str], message: str, folder: str, capsys: pytest.CaptureFixture) -> None:
    assert main(words if words in ([], ["nowhere"]) else [folder, *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.slow
def test_absent_data_or_an_absent_lm_eval_are_one_line(folder: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ouro_lab.evaluation.benchmarks", folder, "--only=arc_easy", "--run"]
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | offline, capture_output=True, text=True, check=False)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    absent = importlib.util.find_spec("lm_eval") is None
    assert done.returncode == 2 and len(errors) == 1 and "Traceback" not in done.stderr
    assert ("lm_eval is not installed" if absent else "benchmark arc_easy: its data are not there") in errors[0]
