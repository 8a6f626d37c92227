"""Objectives take states as they are made; those that read only the last, or a mixture, hold no other."""

import weakref
from collections.abc import Callable, Iterator

import pytest
import torch

from ouro_lab.model import LoopState
from ouro_lab.objectives import KLToPrior, LastLoop, MeanOverLoops, MixtureOfLogits, StageOne, with_exit_probability

LOOPS = 8


def watched(case: Callable, alive: list[int]) -> Iterator[LoopState]:
    """Fresh states; before making each, notes how many of the earlier ones somebody still holds."""
    made: list[weakref.ref] = []
    for state in case(LOOPS).states():
        alive.append(sum(ref() is not None for ref in made))
        hidden = state.hidden.detach().clone()
        made.append(weakref.ref(hidden))
        fresh = LoopState(hidden, state.gate_logit.detach().clone())
        del hidden
        yield fresh
        del fresh, state


@pytest.mark.parametrize(("objective", "held"), [(LastLoop(), 1), (MixtureOfLogits(), 2)])
def test_at_most_two_states_are_held(objective: StageOne, held: int, case: Callable) -> None:
    given, alive = case(LOOPS), []
    with torch.no_grad():
        objective(watched(case, alive), given.head, given.targets)
    assert len(alive) == LOOPS
    assert max(alive) <= held


def test_one_pass_over_an_iterator_is_enough_for_every_objective(case: Callable) -> None:
    given = case()
    for objective in (LastLoop(), MeanOverLoops(), StageOne(), KLToPrior(), MixtureOfLogits()):
        from_iterator, _ = objective(given.states(), given.head, given.targets)
        from_list, _ = objective(list(given.states()), given.head, given.targets)
        assert torch.equal(from_iterator, from_list)


def test_a_loop_s_probability_is_known_once_the_next_loop_exists(case: Callable) -> None:
    asked = []

    def counted() -> Iterator[LoopState]:
        for loop, state in enumerate(case(4).states(), start=1):
            asked.append(loop)
            yield state

    pairs = with_exit_probability(counted())
    assert asked == []
    for loop in (1, 2, 3):
        next(pairs)
        assert asked == list(range(1, loop + 2))
    next(pairs)
    assert asked == [1, 2, 3, 4]
    assert list(pairs) == []
