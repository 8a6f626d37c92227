"""An arm and a task of one's own, as README.md and docs/data.md have them: their very blocks are run."""

import re
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from tests_support import TINY

from ouro_lab import records
from ouro_lab.check import check
from ouro_lab.config import ROOT
from ouro_lab.data.tasks.protocol import TEST, TRAIN, VAL
from ouro_lab.run import execute
from ouro_lab.study import Study

LINES = 20


def block(file: str, language: str, holds: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```", (ROOT / file).read_text(), re.DOTALL | re.MULTILINE)
    (one,) = (text for text in found if holds in text)
    return one


def test_the_arm_of_the_readme_joins_a_study() -> None:
    text = block("README.md", "yaml", "three_layers")
    assert len(text.splitlines()) < LINES
    added = OmegaConf.to_container(OmegaConf.create(text))["study"]
    overrides = [
        f"+study.{kind}.{name}={flow(value)}" for kind, items in added.items() for name, value in items.items()
    ]
    study = Study("p_hop", [*TINY, *(one.replace("hops_8", "hops_2") for one in overrides), "study.seeds=[0]"])
    costs = {name: part.cost for name, part in check(study).items()}
    assert costs["three_layers"]["shape"] == "3⊗1"
    (run,) = (run for run in study.expand() if run.arm == "three_layers")
    assert execute(run) == 0


def test_the_task_of_the_docs_trains_and_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = block("docs/data.md", "python", "class Parity")
    body = code[code.index("class Parity") :]
    assert len([line for line in body.splitlines() if line.strip()]) < LINES
    (tmp_path / "parity.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("OURO_ALLOW", "parity")
    data = OmegaConf.to_container(OmegaConf.create(block("docs/data.md", "yaml", "parity.Parity")))
    assert data.pop("seed") == "${seed}"  # stays p_hop's
    task = {"_target_": data["task"].pop("_target_"), **data["task"]}
    overrides = ["~data.task.alphabet", "~data.task.hops", *(f"data.task.{key}={value}" for key, value in task.items())]
    overrides += ["study.lr=null", "~study.contrasts", "~study.positive_control", "study.seeds=[0]", "tracking=none"]
    overrides += ["budget.steps=60", "optim.lr=1e-2", "backbone.width=16", "backbone.heads=2", "trainer.val_every=30"]
    runs = [run for run in Study("p_hop", overrides).expand() if run.arm == "looped"]
    assert [execute(run) for run in runs] == [0]
    final = records.read_final(runs[0].directory)["metrics"]
    assert final["final/accuracy"] == final["final/accuracy/parity"]
    assert final["final/accuracy"] > 0.56  # twelve positions; with the first two right and the rest by chance 0.583


def test_no_sequence_of_the_docs_task_is_in_two_splits() -> None:
    space: dict = {}
    exec(block("docs/data.md", "python", "class Parity"), space)  # noqa: S102
    task = space["Parity"](length=8)
    seen = {}
    for split in (TRAIN, VAL, TEST):
        arrays = task.sample(3, np.arange(500), split)
        seen[split] = {row.tobytes() for row in arrays["tokens"]}
        part = task.sample(3, np.arange(200, 260), split)
        np.testing.assert_array_equal(part["tokens"], arrays["tokens"][200:260])
        np.testing.assert_array_equal(arrays["targets"][:, -1], arrays["tokens"].sum(1) % 2)
    assert not (seen[TRAIN] & seen[VAL] or seen[TRAIN] & seen[TEST] or seen[VAL] & seen[TEST])


def flow(value: object) -> str:
    """As an override can hold it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(f"'{one}'" if "=" in str(one) else str(one) for one in value) + "]"
    return str(value)
