import json
from dataclasses import asdict

import pytest

from ouro_lab.compute.cost import training_cost
from ouro_lab.compute.match import MismatchError, check, compare, format_table
from ouro_lab.model import ModelConfig


def cost(layers: int, loops: int, steps: int = 100, supervised: int | None = 1) -> dict:
    """As a run's record has it: a shape's cost and its budget."""
    config = ModelConfig(vocab_size=256, layers=layers, loops=loops, width=64)
    each = training_cost(config, 48, supervised)
    tokens = steps * 3072
    return {**each.as_dict(), "steps": steps, "tokens": tokens, "training_flops": tokens * each.flops_per_token}


def rows(*arguments, **more):
    return {row.quantity: row for row in compare(*arguments, **more)}


def test_regime_a_holds_parameters_and_leaves_flops_free():
    found = rows(cost(2, 3), cost(2, 1), ["parameters", "tokens"])
    assert found["parameters"].held
    assert found["parameters"].mismatch == found["body_parameters"].mismatch == found["tokens"].mismatch == 0
    assert not found["training_flops"].held
    assert 1.5 < found["training_flops"].mismatch < 2  # three bodies, but one head in both
    assert found["effective_depth"].mismatch == 2


def test_iso_flop_is_exact_with_equal_heads_and_not_with_a_head_per_loop():
    assert rows(cost(2, 3), cost(6, 1), ["flops"])["training_flops"].mismatch == 0
    with pytest.raises(MismatchError, match="training_flops"):
        check("cost_of_tying", cost(2, 3, supervised=3), cost(6, 1), ["flops", "tokens"])


def test_mismatch_names_contrast_quantity_values_and_limit():
    with pytest.raises(MismatchError) as caught:
        check("more_steps", cost(2, 1, steps=103), cost(2, 1), ["parameters", "steps"], limit=0.02)
    text = "contrast more_steps: steps is held equal, but arm has 103 and reference 100: +3 %, limit 2 %"
    assert str(caught.value) == text


def test_within_the_limit_is_held():
    assert check("c", cost(2, 1, steps=101), cost(2, 1), ["steps", "flops"], limit=0.02)
    with pytest.raises(MismatchError, match=r"× 3, limit 2 %"):
        check("c", cost(2, 1, steps=300), cost(2, 1), ["steps"])


@pytest.mark.parametrize(
    ("equal", "message"),
    [
        (["flop"], r"equal: flop: unknown quantity; did you mean flops\? valid: parameters"),
        (["paramters"], r"did you mean parameters\?"),
        (["kv_bytes_per_token"], r"kv_bytes_per_token: cannot be held equal, not known for the arm"),
    ],
)
def test_bad_quantity_is_one_line(equal, message):
    with pytest.raises(MismatchError, match=message) as caught:
        check("c", cost(2, 1) | {"kv_bytes_per_token": None}, cost(2, 1), equal)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("contrast c: ")


def test_a_measured_arm_is_compared_in_the_full_square():
    derived = cost(2, 3)
    full = derived["flops_per_token_full_square"]
    totals = {"flops_per_token": full, "training_flops": full * derived["tokens"]}
    found = rows(derived | {"method": "measured"} | totals, derived, ["flops"])
    assert found["training_flops"].mismatch == found["flops_per_token"].mismatch == 0


def test_rows_are_json_and_a_table():
    found = compare(cost(2, 3), cost(2, 1), ["parameters"])
    assert json.loads(json.dumps([asdict(row) for row in found]))[0]["held"] is True
    lines = format_table(found).splitlines()
    assert lines[0].split() == ["quantity", "arm", "reference", "mismatch"]
    assert lines[1].split() == ["parameters", "133,696", "133,696", "0", "%", "held", "equal"]
    assert any(line.startswith("training_flops") and "× 2." in line for line in lines)
