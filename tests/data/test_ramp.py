"""A batch that grows: which samples a step reads is a pure function of the step, and the budget's steps follow."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ouro_lab.compute.budget import Budget
from ouro_lab.data.ramp import Ramp
from ouro_lab.data.sampler import AHEAD, MicroBatches, Slice

PHASES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), max_size=3)


@given(phases=PHASES, batch=st.integers(1, 6), skip=st.integers(0, 9), steps=st.integers(0, 25))
def test_steps_read_the_samples_one_after_the_other(phases: list, batch: int, skip: int, steps: int) -> None:
    ramp = Ramp(12 * batch, tuple((count, 12 * size) for count, size in phases), skip)
    sizes = [12 * size for count, size in phases for _ in range(count)] + [12 * batch] * 30  # step by step
    assert [ramp.size(step) for step in range(steps)] == sizes[:steps]
    assert ramp.samples(steps) == sum(sizes[:steps])
    for world, accumulate in ((1, 1), (2, 3)):
        parts = [Slice(ramp, world, rank, accumulate) for rank in range(world)]
        read = [part.indices(micro) for micro in range(steps * accumulate) for part in parts]
        assert np.concatenate([[], *read]).tolist() == list(range(skip, skip + sum(sizes[:steps])))


def test_batches_made_ahead_keep_their_own_size() -> None:
    ramp = Ramp(8, ((3, 2), (2, 4)))
    batches = MicroBatches(lambda indices: {"i": indices}, Slice(ramp))
    for first in (0, 4):  # as a resumed run begins
        for step in range(first, first + AHEAD + 3):
            assert batches[step]["i"].tolist() == list(range(ramp.first(step), ramp.first(step) + ramp.size(step)))


def test_tokens_become_steps_and_the_ramp_takes_its_share_of_the_budget() -> None:
    ramp = Ramp.of_tokens(2048, 4096, [[1.5e12, 1024]], 3e12)  # the paper's first stage, 4M to 8M tokens
    assert ramp.phases == ((round(1.5e12 / 2**22), 1024),)
    assert ramp.skip == round(3e12 / 4096)
    before = ramp.steps, ramp.samples(ramp.steps) * 4096
    steps = Budget(tokens=3e12).steps_for(2048 * 4096, 1.0, before)
    assert steps == ramp.steps + round((3e12 - ramp.steps * 2**22) / 2**23)
    assert ramp.samples(steps) * 4096 == pytest.approx(3e12, abs=2**22)
    assert Budget(flops=6e12).steps_for(2048 * 4096, 2.0, before) == steps
    assert Budget(steps=400_000).steps_for(2048 * 4096, 1.0, before) == 400_000


@pytest.mark.parametrize("budget", [Budget(steps=3), Budget(tokens=300)])
def test_a_ramp_that_outlasts_the_budget_is_refused(budget: Budget) -> None:
    with pytest.raises(ValueError, match=r"data\.ramp: takes 3 steps, and all of the budget; must end before it does"):
        budget.steps_for(200, 1.0, (3, 300))


@pytest.mark.parametrize("ramp", [[[100]], [[0, 4]], [[100, 0]], [[100, 2.5]], [["100", 4]]])
def test_a_pair_that_is_none_is_named(ramp: list) -> None:
    with pytest.raises(ValueError, match=r"ramp = .*: must be a list of \[tokens, sequences\], as \[\[1e6, 32\]\]"):
        Ramp.of_tokens(8, 16, ramp, 0)


def test_a_size_that_ranks_cannot_share_is_named() -> None:
    with pytest.raises(ValueError, match=r"batch_size = 6: must be a multiple of devices × accumulation = 4 × 1 = 4"):
        Slice(Ramp(8, ((3, 6),)), 4)
    with pytest.raises(ValueError, match="skip_tokens = -1: must be a number ≥ 0"):
        Ramp.of_tokens(8, 16, [], -1)
