import pytest

from ouro_lab.compute.budget import Budget


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        (Budget(steps=7), 7),
        (Budget(steps=7.0), 7),
        (Budget(tokens=1000), 10),
        (Budget(tokens=1049), 10),
        (Budget(tokens=1050), 11),
        (Budget(tokens=50), 1),
        (Budget(flops=1e6), 20),
    ],
)
def test_steps_to_the_nearest(budget, steps):
    assert budget.steps_for(tokens_per_step=100, flops_per_token=500.0) == steps


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"budget: give exactly one of steps, tokens, flops \(got none\)"),
        ({"steps": 1, "flops": 1e9}, r"exactly one .*got steps and flops"),
        ({"steps": 0}, r"budget\.steps = 0: must be an integer ≥ 1"),
        ({"steps": 1.5}, r"budget\.steps = 1\.5"),
        ({"steps": True}, r"budget\.steps = True"),
        ({"tokens": -5}, r"budget\.tokens = -5: must be a number > 0"),
        ({"flops": "1e9"}, r"budget\.flops = '1e9'"),
        ({"flops": float("inf")}, r"budget\.flops = inf"),
    ],
)
def test_exactly_one_positive_measure(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        Budget(**given)
    assert "\n" not in str(caught.value)


def test_less_than_a_step_is_refused():
    with pytest.raises(ValueError, match=r"budget\.tokens = 49: less than half a step, which is 100 tokens"):
        Budget(tokens=49).steps_for(100, 1.0)
    with pytest.raises(ValueError, match=r"budget\.flops = 10: less than half a step"):
        Budget(flops=10).steps_for(100, 1.0)
