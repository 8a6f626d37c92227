"""Multi-hop questions against a literal walk over the facts, and a search for leaks under any seed and fraction."""

import itertools
from collections import Counter

import numpy as np
import pytest

from ouro_lab.data.tasks import MultiHop
from ouro_lab.data.tasks.wording import Sentences

SMALL = {"layers": 4, "entities": 5, "relations": 3}

Question = tuple[int, ...]


def questions(task: MultiHop, arrays: dict) -> list[Question]:
    """Head and relations of each row, without what fills it up (symbols)."""
    return [tuple(t for t in row if t != task.vocab_size - 1) for row in arrays["tokens"].tolist()]


def answers(arrays: dict) -> list[int]:
    return arrays["targets"][arrays["scored"]].tolist()


def facts_of(task: MultiHop) -> dict[Question, int]:
    """(head, relation) → tail in tokens, from the facts alone."""
    facts = task.facts()
    first = task.layers * task.entities
    columns = (facts.heads.tolist(), facts.relations[:, 0].tolist(), facts.answers.tolist())
    return {(h, first + r): t for h, r, t in zip(*columns, strict=True)}


@pytest.mark.parametrize("links", ["permutation", "random"])
def test_answers_are_the_walk_and_the_relation_in_front_is_applied_first(links: str) -> None:
    task = MultiHop(**SMALL, hops=[2, 3], links=links)
    facts = facts_of(task)
    for arrays in (task.sample(4, np.arange(400)), task.evaluation("test", 50)):
        assert (arrays["scored"].sum(axis=1) == 1).all()
        assert ((arrays["targets"] != -100) == arrays["scored"]).all()
        for (head, *relations), answer in zip(questions(task, arrays), answers(arrays), strict=True):
            for relation in relations:
                head = facts[head, relation]
            assert head == answer


def test_the_sizes_that_decide() -> None:
    task = MultiHop()
    assert len(task.questions(3)) == 16_000
    assert len(task.facts()) == 4 * 16 * 10
    assert task.vocab_size == 5 * 16 + 10 + 1
    assert task.sequence_length == 4
    assert task.groups == ("hops_3", "seen_hops_1", "seen_hops_3")
    sizes = {split: {group: len(rows) for group, rows in part.items()} for split, part in task.rows.items()}
    assert sizes == {
        "train": {"seen_hops_1": 640, "seen_hops_3": 9600},
        "val": {"hops_3": 1600},
        "test": {"hops_3": 1600},
    }


def test_the_published_size() -> None:
    task = MultiHop(entities=100, relations=20, links="random", train_fraction=0.15, held_out=0.0075)
    assert len(task.questions(3)) == 800_000
    assert len(task.facts()) == 8000
    assert [len(task.rows["train"]["seen_hops_3"]), len(task.rows["test"]["hops_3"])] == [120_000, 3000]


def test_relations_lead_to_the_next_layer_and_permutations_reach_all_of_it() -> None:
    for links in ("permutation", "random"):
        facts = MultiHop(links=links).facts()
        assert (facts.answers // 16 == facts.heads // 16 + 1).all()
        columns = (facts.heads // 16, facts.relations[:, 0], facts.answers)
        into = Counter(zip(*(column.tolist() for column in columns), strict=True))
        assert (max(into.values()) == 1) == (links == "permutation")


@pytest.mark.parametrize("wording", ["symbols", "sentences"])
def test_no_held_out_question_is_in_training_under_any_seed(wording: str) -> None:
    task = MultiHop(**SMALL, hops=[2, 3], wording=wording, train_fraction=0.8)
    chains = [task.chains.take(rows) for part in task.rows.values() for rows in part.values()]
    listed = [(h, *r) for part in chains for h, r in zip(part.heads, map(tuple, part.relations), strict=True)]
    assert len(set(listed)) == len(listed) == 45 + (4 + 4 + 36) + (13 + 13 + 108)  # each is in one part at most
    held = {split: rows_of(task, task.evaluation(split, 10_000), seen=False) for split in ("val", "test")}
    assert held["val"]
    assert held["test"]
    assert not held["val"] & held["test"]
    for seed in range(5):
        trained = rows_of(task, task.sample(seed, np.arange(4000)))
        assert not trained & (held["val"] | held["test"])
        assert rows_of(task, task.sample(seed, np.arange(300), "test")) <= held["test"]


def rows_of(task: MultiHop, arrays: dict, seen: bool = True) -> set[Question]:
    """What is asked, whatever the phrasing: entities and relations of each row in the order of their tokens."""
    most = task.layers * task.entities + task.relations
    keep = [seen or not task.groups[group].startswith("seen") for group in arrays["group"]]
    return {tuple(t for t in row if t < most) for row in arrays["tokens"][keep].tolist()}


@pytest.mark.parametrize("wording", ["symbols", "sentences"])
def test_a_larger_fraction_contains_the_smaller_and_the_test_stays(wording: str) -> None:
    small, large = (MultiHop(train_fraction=fraction, wording=wording) for fraction in (0.2, 0.6))
    trained = [rows_of(task, task.evaluation("val", 20_000)) for task in (small, large)]
    assert len(trained[0]) == 3200 + 640 + 1600
    assert trained[0] < trained[1]
    assert (small.evaluation("test", 500)["tokens"][:500] == large.evaluation("test", 500)["tokens"][:500]).all()


def test_facts_are_their_share_of_every_batch() -> None:
    for share in (0.25, 0.1, 1 / 3):
        task = MultiHop(facts_share=share)
        for start in (0, 512, 51_200):
            facts = task.sample(0, np.arange(start, start + 512))["group"] == task.groups.index("seen_hops_1")
            assert abs(facts.sum() - 512 * share) <= 1


def test_training_questions_are_uniform_over_hop_counts_and_questions() -> None:
    task = MultiHop(**SMALL, hops=[2, 3])
    group = np.bincount(task.sample(1, np.arange(6000))["group"], minlength=5)
    assert group[:2].sum() == 0  # nothing held out
    assert group[2] == 1500
    assert abs(group[3] - group[4]) < 250
    two = Counter(q for q in questions(task, task.sample(1, np.arange(6000))) if len(q) == 3)
    assert len(two) == 27  # 60 % of 45
    assert min(two.values()) > 45


@pytest.mark.parametrize("wording", ["symbols", "sentences"])
def test_a_sample_is_a_function_of_seed_and_index(wording: str) -> None:
    task = MultiHop(wording=wording)
    whole = task.sample(1, np.arange(100))
    part = MultiHop(wording=wording).sample(1, np.array([70, 3]))
    for key in whole:
        assert (whole[key][[70, 3]] == part[key]).all()
    assert (task.sample(2, np.arange(100))["tokens"] != whole["tokens"]).any(axis=1).mean() > 0.9


def test_another_world_has_another_graph_and_another_split() -> None:
    one, other = MultiHop(), MultiHop(world=1)
    assert (one.graph != other.graph).mean() > 0.8
    assert rows_of(one, one.evaluation("test", 9999), seen=False) != rows_of(
        other, other.evaluation("test", 9999), seen=False
    )


def test_evaluation_holds_different_questions_or_all() -> None:
    task = MultiHop(**SMALL, hops=[2, 3])
    arrays = task.evaluation("val", 10)
    assert np.bincount(arrays["group"]).tolist() == [4, 10, 10, 10, 10]  # 10 % of 45 questions are 4
    assert len(set(questions(task, arrays))) == 44


@pytest.mark.parametrize("links", ["permutation", "random"])
def test_floors_are_the_best_majority_by_brute_force(links: str) -> None:
    task = MultiHop(**SMALL, hops=[2, 3], links=links)
    facts, best = facts_of(task), {}
    for hops in (2, 3):
        asked = [(h, *(20 + r for r in rs)) for h in range(5) for rs in itertools.product(range(3), repeat=hops)]
        scores = []
        for fields in (f for n in range(hops + 1) for f in itertools.combinations(range(hops + 1), n)):
            cells: dict[Question, Counter] = {}
            for question in asked:
                answer = question[0]
                for relation in question[1:]:
                    answer = facts[answer, relation]
                cells.setdefault(tuple(question[f] for f in fields), Counter())[answer] += 1
            scores.append(sum(max(cell.values()) for cell in cells.values()) / len(asked))
        best[f"accuracy/hops_{hops}"] = max(scores)
    floors = task.floors()
    assert {key: floors[key]["value"] for key in best} == pytest.approx(best, abs=1e-12)
    assert floors["accuracy"]["value"] == pytest.approx(max(best.values()))
    assert "relation" in str(floors["accuracy"]["what"])


def test_permutations_leave_no_shortcut_without_the_head() -> None:
    """Given all relations and no head, every entity of the last layer is equally likely."""
    task = MultiHop()
    everything = task.questions(3)
    for relations in ([0, 0, 0], [3, 1, 9]):
        found = everything.answers[(everything.relations == relations).all(axis=1)]
        assert sorted(found.tolist()) == list(range(48, 64))


def test_sentences_name_the_last_relation_first() -> None:
    task = MultiHop(wording="sentences")
    words = task.wording
    assert isinstance(words, Sentences)
    assert len(set(words.vocabulary)) == words.vocab_size == task.vocab_size
    prompts, lengths = words.write(np.array([0, 0]), np.array([[0, 1, 2], [5, -1, -1]]), np.zeros(2, np.uint64))
    assert words.read(prompts[0]) == "who is the barber of the apprentice of the accountant of Babel ? that is"
    assert words.read(prompts[1]) == "the cousin of Babel is"
    assert lengths.tolist() == [len(words.read(row).split()) for row in prompts]
    every = Sentences(768, 24, 3)
    assert len(set(every.vocabulary)) == every.vocab_size


def test_every_phrasing_occurs_and_the_prompt_ends_where_the_answer_is_due() -> None:
    task = MultiHop(wording="sentences", loss="all")
    arrays = task.sample(0, np.arange(400))
    texts = [task.wording.read(row) for row in arrays["tokens"]]
    starts = Counter((text.split()[0], task.groups[g]) for text, g in zip(texts, arrays["group"], strict=True))
    assert set(starts) == {
        *((word, "seen_hops_1") for word in ("the", "in", "everybody")),
        *((word, "seen_hops_3") for word in ("who", "please")),
    }
    for row, targets, scored, text in zip(*(arrays[k] for k in ("tokens", "targets", "scored")), texts, strict=True):
        length = len(text.split())
        assert targets[: length - 1].tolist() == row[1:length].tolist()
        assert scored.nonzero()[0].tolist() == [length - 1]
        assert targets[length - 1] < task.layers * task.entities
        assert (targets[length:] == -100).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": 2}, r"layers = 2: must be an integer ≥ 3"),
        ({"hops": 5}, r"hops = 5: must be an integer from 2 to 4"),
        ({"hops": [1, 2]}, r"hops = 1: must be an integer from 2 to 4"),
        ({"hops": [2, 2]}, r"hops = \[2, 2\]: must be different integers from 2 to 4"),
        ({"links": "permuted"}, r"links = 'permuted': must be one of permutation, random"),
        ({"train_fraction": 0.9}, r"train_fraction = 0.9: must be a number above 0 and at most 1 − held_out = 0.8"),
        ({"train_fraction": 0.00001}, r"train_fraction = 1e-05: no question of 16000 of 3 hops; must be larger"),
        ({"held_out": 0}, r"held_out = 0: must be a number above 0 and below 1"),
        ({"facts_share": 1.0}, r"facts_share = 1.0: must be a number above 0 and below 1"),
        ({"wording": "prose"}, r"wording = 'prose': must be one of symbols, sentences"),
        ({"loss": "none"}, r"loss = 'none': must be one of answer, all"),
        ({"relations": 100}, r"relations = 100: 16000000 questions of 3 hops; .* must be at most 4194304"),
        ({"wording": "sentences", "relations": 25}, r"relations in sentences = 25: must be an integer from 1 to 24"),
    ],
)
def test_bad_values_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiHop(**arguments)
