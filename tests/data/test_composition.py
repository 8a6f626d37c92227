"""Two-hop composition: what is chained where, by a walk over the facts."""

import numpy as np
import pytest

from ouro_lab.data.tasks import Composition

SMALL = {"entities": 30, "relations": 8, "out_degree": 4, "ood": 0.25, "ratio": 2.0}


@pytest.fixture(scope="module")
def task() -> Composition:
    return Composition(**SMALL)


def numbered(task: Composition) -> dict[tuple[int, int], int]:
    """(head, relation) → number of the fact."""
    return {(h, r): n for n, (h, r) in enumerate(zip(task.facts.heads, task.facts.relations[:, 0], strict=True))}


def used(task: Composition, question: list[int]) -> tuple[int, int, int]:
    """Numbers of the two facts of a prompt (head, r1, r2) and where they lead."""
    facts, (head, first, second) = numbered(task), question
    one = facts[head, first - task.entities]
    two = facts[int(task.facts.answers[one]), second - task.entities]
    return one, two, int(task.facts.answers[two])


def of_group(task: Composition, arrays: dict, group: str) -> list[tuple[list[int], int]]:
    here = arrays["group"] == task.groups.index(group)
    return list(zip(arrays["tokens"][here].tolist(), arrays["targets"][here].max(axis=1).tolist(), strict=True))


def test_each_head_has_its_facts_under_different_relations(task: Composition) -> None:
    assert len(task.facts) == 120
    assert len(numbered(task)) == 120
    assert np.bincount(task.facts.heads).tolist() == [4] * 30
    assert task.is_ood.sum() == 30
    assert task.vocab_size == 39
    assert task.groups == ("id", "ood", "seen_facts", "seen_questions")


def test_training_chains_only_facts_in_distribution_under_any_seed(task: Composition) -> None:
    facts = set()
    for seed in range(4):
        arrays = task.sample(seed, np.arange(2000))
        questions = of_group(task, arrays, "seen_questions")
        assert len(questions) + len(of_group(task, arrays, "seen_facts")) == 2000
        for question, answer in questions:
            one, two, tail = used(task, question)
            assert not task.is_ood[[one, two]].any()
            assert tail == answer
        facts |= {tuple(tokens[:2]) for tokens, _ in of_group(task, arrays, "seen_facts")}
    assert len(facts) == 120  # those out of distribution too


def test_held_out_questions_are_of_their_kind_and_never_trained(task: Composition) -> None:
    trained = {
        tuple(q) for seed in range(4) for q, _ in of_group(task, task.sample(seed, np.arange(4000)), "seen_questions")
    }
    assert len(trained) == 180  # ratio · 90 facts
    held: list[tuple] = []
    for split in ("val", "test"):
        arrays = task.evaluation(split, 10_000)
        for group in ("id", "ood"):
            found = of_group(task, arrays, group)
            assert found
            for question, answer in found:
                one, two, tail = used(task, question)
                assert task.is_ood[[one, two]].tolist() == [group == "ood"] * 2
                assert tail == answer
            held += [tuple(question) for question, _ in found]
    assert len(set(held)) == len(held)
    assert not set(held) & trained


def test_sizes_as_published() -> None:
    task = Composition(entities=2000, relations=200, out_degree=20, ood=0.05, ratio=7.2, held_out=0.01)
    assert len(task.facts) == 40_000
    assert task.is_ood.sum() == 2000
    assert len(task.rows["train"]["seen_questions"]) == 273_600
    assert task.share == 40_000 / 313_600


def test_the_held_out_part_does_not_depend_on_the_ratio(task: Composition) -> None:
    other = Composition(**SMALL | {"ratio": 1.0})
    one, two = ([q for q, _ in of_group(t, t.evaluation("test", 99), "id")] for t in (task, other))
    assert one == two


def test_a_sample_is_a_function_of_seed_and_index(task: Composition) -> None:
    whole, part = task.sample(1, np.arange(100)), Composition(**SMALL).sample(1, np.array([70, 3]))
    for key in whole:
        assert (whole[key][[70, 3]] == part[key]).all()


def test_facts_come_in_their_natural_share_or_in_the_stated_one(task: Composition) -> None:
    for one, share in ((task, 120 / 300), (Composition(**SMALL, facts_share=0.1), 0.1)):
        facts = one.sample(0, np.arange(1000))["group"] == one.groups.index("seen_facts")
        assert abs(facts.sum() - 1000 * share) <= 1


def test_floors_are_the_best_majority_by_brute_force(task: Composition) -> None:
    facts = numbered(task)
    chains = []  # head, r1, r2, answer, kind
    for (head, first), one in facts.items():
        for (bridge, second), two in facts.items():
            if bridge == task.facts.answers[one]:
                kinds = {bool(task.is_ood[one]), bool(task.is_ood[two])}
                chains.append((head, first, second, int(task.facts.answers[two]), kinds))
    for group, kind in (("id", {False}), ("ood", {True})):
        scores = []
        for fields in ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2)):
            cells: dict[tuple, list[int]] = {}
            for chain in (c for c in chains if group == "ood" or c[4] == kind):
                cells.setdefault(tuple(chain[f] for f in fields), []).append(chain[3])
            guess = {cell: min(set(found), key=lambda a: (-found.count(a), a)) for cell, found in cells.items()}
            hits = [guess[tuple(chain[f] for f in fields)] == chain[3] for chain in chains if chain[4] == kind]
            scores.append(sum(hits) / len(hits))
        assert task.floors()[f"accuracy/{group}"]["value"] == pytest.approx(max(scores), abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out_degree": 41}, r"out_degree = 41: must be an integer from 1 to 40"),
        ({"ratio": 9.0}, r"ratio = 9.0: must be above 0; \d+ questions for 1700 facts allow at most [78]\.\d+"),
        ({"ratio": 0}, r"ratio = 0: must be above 0"),
        ({"ood": 1.5}, r"ood = 1.5: must be a number above 0 and below 1"),
        ({"ood": 0.001}, r"ood = 0.001: no out-of-distribution question"),
        ({"held_out": 0.00001}, r"held_out = 1e-05: no in-distribution question"),
    ],
)
def test_bad_values_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Composition(**arguments)
