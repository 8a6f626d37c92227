"""The pipelines of the released sizes: the paper's table on the meta device, and each stage's steps when shrunk."""

import re

import pytest

from ouro_lab import records, run
from ouro_lab.assembly import Parts
from ouro_lab.check import check, check_starts
from ouro_lab.config import EXPERIMENTS, build
from ouro_lab.data.ramp import Ramp
from ouro_lab.study import Study, smoke_overrides

SIZES = {"ouro_1_4b": (24, 1_434_652_673), "ouro_2_6b": (48, 2_667_974_657)}
# Tokens, loops, β, rate at the end, length, RoPE base, tokens a step: the paper's table, and its text on fine-tuning.
TABLE = {
    "pretrain_1": (3e12, 8, 0.1, 3e-4, 4096, 1e4, 2**23),
    "pretrain_2": (3e12, 4, 0.05, 3e-4, 4096, 1e4, 2**23),
    "anneal": (1.4e12, 4, 0.05, 3e-5, 16384, 4e4, 2**23),
    "long_context": (2e10, 4, 0.05, 3e-5, 65536, 1e6, 2**23),
    "mid_training": (3e11, 4, 0.05, 1e-5, 32768, 1e6, 2**23),
    "sft": (None, 4, 0.05, 0.0, 32768, 1e6, None),
}

STAGE_1 = {"nemotron_cc": 73.4, "map_cc": 13.0, "opencoder_pretrain": 7.5, "megamath_web": 4.1, "ultra_fineweb_zh": 2.0}
ANNEAL = {
    "nemotron_cc_high_quality": 66.5,
    "nemotron_cc_math": 15.0,
    "nemotron_sft_general": 6.2,
    "megamath_high_quality": 4.6,
    "nemotron_synthetic_code": 3.8,
    "nemotron_sft_code": 3.4,
    "opencoder_annealing": 0.5,
}
# Percent of each stage's rows: the paper's tables; of mid-training's 300B tokens 90B, 30B and 180B are of three parts.
MIXTURES = {
    "pretrain_1": STAGE_1,
    "pretrain_2": STAGE_1,
    "anneal": ANNEAL,
    "mid_training": {
        "dialogues": 30.0,
        **{name: share * 0.1 for name, share in STAGE_1.items()},
        **{name: share * 0.6 for name, share in ANNEAL.items()},
    },
}


@pytest.fixture(scope="module", params=SIZES)
def checked(request: pytest.FixtureRequest) -> tuple[Study, dict[str, Parts]]:
    study = Study(request.param)
    return study, check(study)


def test_every_stage_is_as_the_paper_says(checked):
    study, parts = checked
    assert list(parts) == list(TABLE)
    for name, (tokens, loops, beta, rate, length, base, batch) in TABLE.items():
        config, part = study.arm_configs[name], parts[name]
        optim = build(config.optim, "optim")
        assert tokens is None or part.cost["tokens"] == pytest.approx(tokens, abs=2**23)
        assert (part.backbone.loops, part.objective.beta, part.data.length) == (loops, beta, length)
        assert optim.lr * optim.schedule(part.steps - 1, part.steps) == pytest.approx(rate, rel=1e-3, abs=1e-9)
        assert part.backbone.config.rope_base == base
        assert batch is None or part.data.batch_size * part.data.length == batch
        assert (optim.betas, optim.weight_decay, config.trainer.clip) == ([0.9, 0.95], 0.1, 1.0)


def test_every_stage_mixes_its_sources_as_the_paper_says(checked):
    _, parts = checked
    for name, percent in MIXTURES.items():
        data = parts[name].data
        shares = {source: float(100 * share) for source, share in zip(data.groups, data.shares, strict=True)}
        assert shares == pytest.approx(percent)


def test_the_weights_have_the_published_count_and_fit_the_next_stage(checked):
    study, parts = checked
    layers, count = SIZES[study.name]
    assert all(parameter.is_meta for part in parts.values() for parameter in part.backbone.parameters())
    assert parts["pretrain_1"].cost["shape"] == "24⊗8"
    assert {part.cost["shape"] for name, part in parts.items() if name != "pretrain_1"} == {f"{layers}⊗4"}
    assert parts["sft"].cost["parameters"] == count
    check_starts(study, parts)  # by their shapes, copied layers included
    starts = {one.arm: one.start for one in study.expand()}
    assert starts["pretrain_2"].layers == (None if layers == 24 else (*range(24), *range(24)))
    assert [name for name, start in starts.items() if start and start.carries] == list(TABLE)[1:-1]


def test_the_first_batch_is_half_of_the_last(checked):
    ramp: Ramp = checked[1]["pretrain_1"].data.ramp
    assert ramp.sizes == (1024, 2048)
    assert checked[1]["pretrain_2"].data.ramp.skip * 4096 == pytest.approx(3e12, abs=4096)


@pytest.mark.parametrize("name", ["base/ouro_paper", "ouro_2_6b"])
def test_every_number_says_where_it_is_from(name):
    recipe, _, _ = (EXPERIMENTS / f"{name}.yaml").read_text().partition("\n  smoke:")
    unsaid = []
    for line in recipe.splitlines():
        stated, _, comment = re.sub(r"pretrain_\d|ouro_\d_\d+b", "", line).partition("#")
        copies = stated.strip().startswith("0, 1, 2")  # layers, of which the lines above tell
        if re.search(r"\d", stated) and not copies and not re.search("published|inferred|ours", comment):
            unsaid.append(line)
    assert not unsaid


# The larger model's layers are doubled by copies as the rehearsal's are: its own steps are in `make test-all`.
@pytest.mark.parametrize("name", ["ouro_rehearsal", "ouro_1_4b", pytest.param("ouro_2_6b", marks=pytest.mark.slow)])
def test_every_stage_takes_two_real_steps_from_the_one_before(name):
    study = Study(name, smoke_overrides(name))
    while todo := study.todo():
        assert [run.execute(one) for one in todo] == [0]
    for one in study.expand():
        assert records.read_final(one.directory)["steps"] >= 2
        assert one.state == "done"
    for one in study.expand():  # what changes along the way, shrunk, is what changes in the paper
        assert one.config["backbone"].get("loops", 4) == TABLE[one.arm][1]
