"""Solved arms hold what they say, by the same check that a study's contrasts pass; what cannot be held is refused."""

from dataclasses import replace

import pytest

from ouro_lab.compute.match import check
from ouro_lab.compute.solver import REGIMES, Arm, Looped, NoMatchError, solve, solve_all
from ouro_lab.model import ModelConfig, iso_flop, iso_parameter

P_HOP = Looped({"vocab_size": 13, "layers": 2, "loops": 3, "width": 64, "heads": 4}, 49, 64 * 49, steps=2000)
STAGE_ONE = replace(P_HOP, shape=P_HOP.shape | {"gate": True}, supervised=3)
TEXT = replace(STAGE_ONE, shape=STAGE_ONE.shape | {"vocab_size": 4096}, unique_tokens=1_000_000)
PARTED = replace(P_HOP, shape=P_HOP.shape | {"layers": 8, "prelude": 1, "coda": 2})
BACKBONES = {"backbone=iso_parameter": iso_parameter, "backbone=iso_flop": iso_flop}


def rebuilt(looped: Looped, arm: Arm) -> dict:
    """Quantities of the arm as its overrides build it, not as the solver thought of it."""
    first, *others = arm.overrides
    changes = {key: int(value) for key, value in (item.split("=") for item in others)}
    steps = changes.pop("budget.steps", None)
    shape = {**looped.shape, **{key.removeprefix("backbone."): value for key, value in changes.items()}}
    return looped.quantities(BACKBONES[first](**shape).config, steps)


@pytest.mark.parametrize("looped", [P_HOP, STAGE_ONE, TEXT, PARTED], ids=["last_loop", "stage_one", "text", "parted"])
@pytest.mark.parametrize("limit", [0.02, 0.05])
def test_solved_arms_are_within_the_limit_as_built(looped, limit):
    solved = [found for found in solve_all(looped, limit) if isinstance(found, Arm)]
    assert len(solved) >= 6
    for arm in solved:
        rows = check(arm.regime, looped.quantities(), rebuilt(looped, arm), arm.held, limit)
        assert {row.quantity for row in rows if row.held} == set(arm.held)
        assert arm.worst <= limit


def test_the_controls_of_p_hop_are_found_again():
    assert solve(P_HOP, "more_tokens").overrides == ("backbone=iso_parameter", "budget.steps=6000")
    assert solve(P_HOP, "wider").overrides == ("backbone=iso_parameter", "backbone.width=112")
    assert solve(P_HOP, "iso_parameter").overrides == ("backbone=iso_parameter",)
    assert solve(P_HOP, "deeper").overrides == ("backbone=iso_parameter", "backbone.layers=6")
    assert solve(P_HOP, "iso_kv").overrides == solve(P_HOP, "iso_depth").overrides == ("backbone=iso_flop",)


def test_a_coda_has_no_untied_twin_with_read_outs():
    shape = PARTED.shape | {"gate": True}
    with pytest.raises(NoMatchError, match="deep_supervised: .* not behind a coda"):
        solve(replace(PARTED, shape=shape, supervised=3), "deep_supervised")


def test_heads_are_charged():
    """A loss per loop of a large vocabulary is worth layers; equal depth is then not equal FLOPs, and says so."""
    assert solve(TEXT, "deeper").overrides[-1] == "backbone.layers=16"
    assert solve(TEXT, "iso_depth").note == "training_flops +90 %"
    deep = solve(TEXT, "deep_supervised")
    assert deep.overrides == ("backbone=iso_flop", "backbone.read_out_every=2")
    assert deep.worst == 0


def test_no_neighbour_is_nearer():
    arm = solve(TEXT, "wider")
    width = int(arm.overrides[-1].split("=")[1])
    goal = TEXT.quantities()["training_flops"]
    gaps = {w: abs(goal / TEXT.quantities(TEXT.arm(width=w))["training_flops"] - 1) for w in range(8, 400, 8)}
    assert min(gaps, key=gaps.__getitem__) == width


def test_equal_seconds_are_steps_by_the_measured_ratio():
    asked = []

    def timed(above: ModelConfig, below: ModelConfig) -> float:
        asked.append((above.shape, below.shape))
        return 2.637

    arm = solve(replace(P_HOP, timed=timed), "wall_clock")
    assert asked == [("2⊗3", "2⊗1")]
    assert arm.overrides == ("backbone=iso_parameter", "budget.steps=5300")
    assert arm.note == "a step of 2⊗3 takes 2.64 × one of 2⊗1 here, not compiled; seconds -0.49 %"
    assert arm.held == ("parameters",)


def test_epochs_of_the_same_unique_tokens():
    assert solve(TEXT, "data_limited").note == "1,000,000 unique tokens: looped 6.27 epochs, this arm 18.8"


@pytest.mark.parametrize(
    ("looped", "regime", "message"),
    [
        (P_HOP, "wall_clock", "wall_clock: no formula knows seconds"),
        (P_HOP, "data_limited", "data_limited: the data have no end"),
        (replace(P_HOP, unique_tokens=10**9), "data_limited", "unique_tokens = 1,000,000,000: more than the budget's"),
        (P_HOP, "deep_supervised", "deep_supervised: the objective has one head"),
        (TEXT, "iso_kv", r"iso_kv: no integer shape within 2 %, the nearest is .*training_flops is held equal"),
        (P_HOP, "iso_flop", "regime iso_flop: unknown; valid: iso_parameter, iso_depth"),
        (replace(P_HOP, shape=P_HOP.shape | {"loops": 1}), "wider", "wider: 2⊗1 is not looped"),
    ],
)
def test_what_cannot_be_held_is_refused_in_one_line(looped, regime, message):
    with pytest.raises(NoMatchError, match=message) as caught:
        solve(looped, regime)
    assert "\n" not in str(caught.value)


def test_a_line_of_a_study():
    line = str(solve(P_HOP, "more_tokens"))
    assert line == "more_tokens: [backbone=iso_parameter, budget.steps=6000]  # parameters 0 %, training_flops -0.52 %"
    assert len(list(solve_all(P_HOP))) == len(REGIMES)
    assert P_HOP.config == ModelConfig(13, 2, 3)
