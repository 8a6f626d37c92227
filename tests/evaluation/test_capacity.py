"""Bits against the formulas of Part 3.3 written out, and against the published anchors."""

import math

import pytest

from ouro_lab.evaluation.capacity import bio_d_terms, bio_s_terms, bits, least_bits, most_bits

LOG2, LN = math.log2, math.log
BIO_S = {"date": 12 * 28 * 200, "city": 200, "university": 300, "major": 100, "employer": 263, "pronoun": 2}
N0 = 400 * 400 * 1000


@pytest.mark.parametrize(
    "shape", [(1300, 9216, 8, 1, 64, 1, 64), (20_000, N0, 5, 3, 100, 4, 500), (7, 50, 2, 4, 3, 2, 2)]
)
@pytest.mark.parametrize("losses", [(7.2, 3.1, 1.4), (20.0, 30.0, 9.0), (0.0, 0.0, 0.0)])
def test_bio_d_is_definition_4_1(shape: tuple[int, ...], losses: tuple[float, ...]) -> None:
    n, n0, k, c, d, length, t = shape
    p1, p2, p3 = losses
    expected = {
        "name": n * LOG2(n0 / math.exp(p1)),
        "value": n * k * LOG2(d**c / math.exp(p2)),
        "diversity": k * d * LOG2(t**length / (d * math.exp(p3))),
    }
    terms = bio_d_terms(*shape)
    found = bits(terms, dict(zip(expected, losses, strict=True)))
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
    most = n * LOG2(n0 / n) + n * k * c * LOG2(d) + k * d * LOG2(t**length / d)
    assert most_bits(terms) == pytest.approx(most, rel=1e-9)


@pytest.mark.parametrize("shape", [(1300, 9216, 8, 1, 64, 1, 64), (20_000, N0, 5, 3, 100, 4, 500)])
def test_no_person_is_worth_what_is_left_of_the_sets(shape: tuple[int, ...]) -> None:
    """Values are guessed from their set, D to one: p₂ = C·ln D, p₃ = ln D."""
    _, n0, k, c, d, length, t = shape
    terms = bio_d_terms(*shape)
    guessed = bits(terms, {"name": LN(n0), "value": c * LN(d), "diversity": LN(d)})
    assert least_bits(terms) == pytest.approx(k * d * LOG2(t**length / d**2), rel=1e-9)
    assert sum(guessed.values()) == pytest.approx(least_bits(terms), rel=1e-9)
    assert least_bits(bio_s_terms(1300, n0, BIO_S)) == 0


def test_bio_s_is_definition_4_3() -> None:
    n, s0 = 50_000, math.prod(BIO_S.values())
    losses = {"name": 12.5, "date": 3.0, "city": 1.0, "university": 2.0, "major": 0.5, "employer": 0.1, "pronoun": 0.7}
    p1, p2 = losses["name"], sum(losses.values()) - losses["name"]
    terms = bio_s_terms(n, N0, BIO_S)
    expected = n * LOG2(N0 / math.exp(p1)) + n * LOG2(s0 / math.exp(p2))
    assert sum(bits(terms, losses).values()) == pytest.approx(expected, rel=1e-9)
    assert most_bits(terms) == pytest.approx(n * LOG2(N0 / n) + n * LOG2(s0), rel=1e-9)


def test_published_anchors() -> None:
    """tasks.md §0.4 and §2.3: a perfect model of 20,000 people in 10⁶ parameters has 1.211; the lists alone have 0."""
    n, parameters = 20_000, 1e6
    terms = bio_s_terms(n, N0, BIO_S)
    nothing = {term.name: 0.0 for term in terms}
    perfect = sum(bits(terms, nothing | {"name": LN(n)}).values()) / parameters
    assert perfect == pytest.approx(1.211, abs=5e-4)
    assert perfect == pytest.approx(most_bits(terms) / parameters, rel=1e-12)
    lists = {"name": LN(N0), **{name: LN(count) for name, count in BIO_S.items()}}
    assert sum(bits(terms, lists).values()) == pytest.approx(0, abs=1e-6)
    assert LOG2(N0) == pytest.approx(27.2535, abs=5e-5)
    assert sum(term.log2_choices for term in terms[1:]) == pytest.approx(47.5916, abs=5e-5)


def test_a_model_that_does_not_know_the_lists_owes_bits() -> None:
    terms = bio_s_terms(10, 100, {"city": 4})
    assert bits(terms, {"name": 9.0, "city": 0.0})["name"] < 0  # not clipped
