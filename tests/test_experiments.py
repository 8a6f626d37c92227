"""Every study of experiments/ composes, checks on the meta device, and each of its arms takes two real steps."""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import DictConfig
from tests_support import starts_elsewhere, tiny_checkpoint, write_questions

from ouro_lab import records, run
from ouro_lab.assembly import assemble
from ouro_lab.check import check, match_table
from ouro_lab.config import EXPERIMENTS, compose_config, study_names
from ouro_lab.evaluation import benchmarks
from ouro_lab.metrics_log import LR_SENSITIVITY, terms
from ouro_lab.starts import CKPT, find
from ouro_lab.study import Run, Study, config_of, smoke_overrides

# Two steps of a narrow model on short sequences: what a study is about is gone, how it is put together is not.
COMMON = [
    "backbone.width=16",
    "backbone.heads=2",
    "trainer.val_every=2",
    "trainer.log_every=1",
    "trainer.precision=32-true",
    "data.batch_size=4",
    "data.length=32",
]
SHRINK = {
    "p_hop": [
        *(override for override in COMMON if override != "data.length=32"),
        "data.val_size=4",
        "data.test_size=4",
        "budget.steps=2",
    ],
    "released": ["backbone.layers=2", "data.folds=2", "data.length=48", "trainer.precision=32-true"],
    "text": [*COMMON, "data=text_file", "data.tokenizer.vocab_size=300", "budget={steps: 2, tokens: null}"],
}
PAPER = ["trainer.accelerator=cpu", "trainer.accumulate=1"]
OWN_FILES: dict[str, Callable[[Path], list[str]]] = {
    "p_hop": lambda folder: [],
    "text": lambda folder: [f"data.corpus.path={folder / 'small.txt'}"],
    "released": lambda folder: [f"data.path={folder / 'questions.jsonl'}"],
}
MORE = {  # what only one study has that makes it long
    "mano_paper": [*PAPER, "data.task.window=64"],
    "multihop_paper": PAPER,
    "capo_paper": [*PAPER, "data.task.people=64"],
    "text_depth_paper": [*PAPER, "backbone.ffn_width=44"],
    "ladder_paper": [*PAPER, "backbone.layers=2"],
    "repeat": ["data.train_tokens=1024"],
    "repeat_lr": ["data.train_tokens=1024"],
    "retrofit": ["backbone.layers=18", "backbone.kv_heads=1", "backbone.ffn_width=44"],
    "released_thinking": ["evaluation.tokens=2", "evaluation.samples=1"],
    "released_reasoning": ["evaluation.tokens=2", "evaluation.samples=1"],
    "released_probes": ["data.groups=[harmful,benign,aime24]"],
    "released_safety": ["evaluation.tokens=2", "evaluation.judge=${oc.env:CKPT}"],
    "kv_text": ["evaluation.prompt=8", "evaluation.tokens=4"],
    "drafting_text": ["evaluation.prompt=8", "evaluation.tokens=4"],
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "small.txt"
    paragraphs = (f"Paragraph {i}: {hashlib.sha256(str(i).encode()).hexdigest()} is its number." for i in range(240))
    path.write_text("\n\n".join(paragraphs))
    write_questions(path.with_name("questions.jsonl"), whole_groups())
    return path


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Ouro's layout of two narrow layers."""
    return tiny_checkpoint(tmp_path_factory.mktemp("released") / "tiny")


def whole_groups() -> list[str]:
    """Every group that a study of a checkpoint, or an arm of it, asks for."""
    found = {"any"}
    for study in (whole(name) for name in study_names() if family_of(name) == "released"):
        found |= set(study.config.data.get("groups", []))
        for arm in study.definition.arms.values():
            asked = [item.removeprefix("data.groups=") for item in arm.overrides if item.startswith("data.groups=")]
            found |= {group for text in asked for group in text.strip("[]").split(",")}
    return sorted(found)


@cache  # a composition is half a second, and most tests ask for the same few
def whole(name: str) -> Study:
    return Study(name)


@cache
def full(name: str) -> Study:
    """The study as it is, but for rates that no finished sweep may have chosen here."""
    study = whole(name)
    return Study(name, ["study.lr=null"]) if borrows(study) else study


def borrows(study: Study) -> bool:
    return study.definition.lr is not None and study.definition.lr.source is not None


def untrained(name: str, config: DictConfig, folder: Path) -> str:
    """A checkpoint of the shrunk arm's own shape, where a trained model is asked for."""
    model = assemble(config, "meta").backbone.to_empty(device="cpu")
    model.initialise(0)
    path = folder / f"{name}.ckpt"
    torch.save({"state_dict": {f"backbone.{key}": value for key, value in model.state_dict().items()}}, path)
    return str(path)


def family_of(name: str) -> str:
    if whole(name).config.init_from == CKPT:
        return "released"
    return "text" if "corpus" in whole(name).config.data else "p_hop"


def shrunk(name: str, arm: str, corpus: Path) -> Run:
    """One arm's run; a key that the arm sets is its own, unless it makes the run long or names a trained model."""
    family = family_of(name)
    shrink = [*SHRINK[family], *OWN_FILES[family](corpus.parent), *MORE.get(name, [])]
    own = ("budget", "backbone.width", "init_from", *(["backbone.layers"] if name == "ladder_paper" else []))
    kept = [item for item in full(name).definition.arms[arm].overrides if not item.startswith(own)]
    config = compose_config(name, [*shrink, *map(within_two_layers, kept)])
    if full(name).arm_configs[arm].init_from not in (None, CKPT):
        config.init_from = untrained(f"{name}-{arm}", config, corpus.parent)
    if full(name).trains(arm):
        config.optim.lr = 1e-3
    config.seed = 0
    found = config_of(config)
    return Run(name, arm, 1e-3, 0, "main", (), found, find(found["init_from"], 0))


def within_two_layers(override: str) -> str:
    """A probe of a deep checkpoint's layer asks for the last of the narrow one's."""
    key, _, value = override.partition("=")
    return f"{key}={min(int(value), 2)}" if key == "evaluation.layer" else override


FINAL: dict[str, dict] = {}  # by a run's hash


@cache
def written(name: str) -> dict:
    """The study block as the files say it, bases first: to compose all of them takes every process half a minute."""
    content = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text())
    found: dict = {"arms": {}, "lr": {}}
    for base in content.get("defaults", []):
        if isinstance(base, str) and (EXPERIMENTS / f"{base.lstrip('/')}.yaml").is_file():
            found = merged(found, written(base.lstrip("/")))
    return merged(found, content.get("study", {}))


def merged(under: dict, over: dict) -> dict:
    return {key: (under.get(key) or {}) | (over.get(key) or {}) for key in ("arms", "lr")}


BORROWED = {
    (written(name)["lr"].get("from"), arm)
    for name in study_names()
    if not name.endswith("_quick")
    for arm in written(name)["arms"]
}
PIPELINES = ("ouro_1_4b", "ouro_2_6b", "ouro_rehearsal")  # whose stages take their steps in test_pipeline*.py
# What a sweep shares with a study is the same config (the last test), so it runs once.
# So does the twin of a study for the larger released model.
ARMS = [
    (name, arm)
    for name in study_names()
    if name not in PIPELINES
    for arm in written(name)["arms"]
    if (name, arm) not in BORROWED and not name.endswith("_2_6b")
]


@pytest.mark.parametrize("name", study_names())
def test_every_study_composes_and_checks(name):
    study = full(name)
    parts = check(study)
    assert set(parts) == set(study.definition.arms) == set(written(name)["arms"])
    assert study.definition.question
    assert study.definition.claim or not study.definition.contrasts  # a sweep or a trunk claims nothing
    if not starts_elsewhere(study):
        assert study.expand(), "a study without a run"
    table = match_table(study, parts)
    assert all(contrast in table for contrast in study.definition.contrasts)


@pytest.mark.parametrize("name", study_names())
def test_smoke_overrides_leave_a_study_that_checks(name):
    short = Study(name, smoke_overrides(name))
    parts = check(short)
    if not starts_elsewhere(whole(name)):
        assert 0 < len(short.expand()) <= max(40, 2 * len(parts))  # two of each arm at most
    assert all(part.steps <= 20 for part in parts.values())
    assert parts.keys() == whole(name).definition.arms.keys()


@pytest.mark.parametrize(("name", "arm"), ARMS)
def test_every_arm_takes_two_steps(name, arm, corpus, released, monkeypatch):
    monkeypatch.setattr(benchmarks, "score", lambda *given: 0.5)  # lm-eval need not be here: tests/evaluation has it
    monkeypatch.setenv(CKPT, str(released))
    one = shrunk(name, arm, corpus)
    if one.hash not in FINAL:  # arms that differ in what is shrunk away are one run here
        assert run.execute(one) == 0
        assert one.state == "done"
        FINAL[one.hash] = records.read_final(one.directory)
    final = FINAL[one.hash]
    assert final["steps"] == (2 if one.config["do"] == "fit" else 0)
    contrasts = full(name).definition.contrasts.values()
    mine = [contrast for contrast in contrasts if arm in (contrast.arm, contrast.reference)]
    wanted = {term for contrast in mine for term in terms(contrast.metric)}
    wanted |= {contrast.where["metric"] for contrast in mine if contrast.where}
    wanted -= {LR_SENSITIVITY}  # of a whole grid of runs
    assert {f"final/{metric}" for metric in wanted} <= final["metrics"].keys()


def test_a_study_that_borrows_takes_rates_for_arms_that_its_source_has():
    for name in study_names():
        study = whole(name)
        if borrows(study):
            trained = {arm for arm in study.definition.arms if study.trains(arm)}
            assert trained <= whole(study.definition.lr.source).definition.arms.keys(), name


def test_a_borrowed_rate_was_chosen_for_the_same_arm():
    """Sweeps and their users share arms by base files; a drift between them would leave every verdict unmatched."""
    for name in study_names():
        study = whole(name)
        if not borrows(study) or name.endswith("_quick"):
            continue
        source = full(study.definition.lr.source)
        for arm in filter(study.trains, study.definition.arms):
            assert full(name).rate_hash(arm) == source.rate_hash(arm), (name, arm)
