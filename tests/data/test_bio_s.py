"""bioS: texts that hold their facts, attributes that tell nothing of one another, words that cost nothing."""

import re
from itertools import pairwise

import numpy as np
import pytest

from ouro_lab.data.tasks import BioS, biographies


def text_parts(task: BioS, row: np.ndarray) -> tuple[str, dict[str, str]]:
    """Full name and values of a biography, read from its text by its templates."""
    text = task.text(row)
    body = text.removeprefix("<eos> ").split(" <eos>")[0].removesuffix(".").split(". ")
    found: dict[str, str] = {}
    name = " ".join(body[0].split()[:3])
    for place, sentence in enumerate(body):
        rest = " ".join(sentence.split()[3 if place == 0 else 1 :])
        for attribute in biographies.PHRASES:
            for lead in (" ".join(words) for words in biographies.templates(attribute, task.templates)):
                if rest.startswith(f"{lead} "):
                    assert attribute not in found
                    found[attribute] = rest.removeprefix(f"{lead} ")
        if place:
            found["pronoun"] = sentence.split()[0]
    return name, found


@pytest.mark.parametrize("simple", [False, True])
def test_bio_s_tells_every_fact_in_words(simple: bool) -> None:
    task = BioS(people=60, templates=50, simple=simple)
    known: dict[str, dict[str, str]] = {}
    texts: dict[str, set[str]] = {}
    for row in task.sample(0, np.arange(240))["tokens"]:
        name, found = text_parts(task, row)
        assert found.keys() == {*biographies.PHRASES, "pronoun"}
        assert known.setdefault(name, found) == found
        assert re.fullmatch(r"[A-Z][a-z]+ \d{1,2} 19\d\d", found["birth_date"])
        texts.setdefault(name, set()).add(task.text(row))
    assert len(known) == 60
    assert {len(told) for told in texts.values()} == ({1} if simple else {4})
    homes: dict[str, str] = {}
    for found in known.values():  # the working city is the employer's
        assert homes.setdefault(found["employer"], found["working_city"]) == found["working_city"]
    assert len({found["birth_city"] for found in known.values()}) > 20


def test_a_frozen_biography_is_evaluated_as_it_was_told() -> None:
    task = BioS(people=60, simple=True)
    told = {tuple(row) for row in task.sample(5, np.arange(60))["tokens"].tolist()}
    assert {tuple(row) for row in task.evaluation("test", 60)["tokens"].tolist()} == told


def test_they_is_worth_no_bit() -> None:
    task, plain = BioS(people=60, they=True), BioS(people=60)
    assert task.vocab_size == plain.vocab_size - 1
    assert all(text_parts(task, row)[1]["pronoun"] == "They" for row in task.sample(0, np.arange(20))["tokens"])
    ours, theirs = ({term.name: term.log2_choices for term in each.terms} for each in (task, plain))
    assert (ours.pop("pronoun"), theirs.pop("pronoun")) == (0, 1)
    assert ours == theirs
    assert (task.values[:, :-1] == plain.values[:, :-1]).all()  # the same people


def test_bio_s_attributes_are_independent_of_one_another() -> None:
    """So no sentence tells of another's value; the working city, which does, is not scored and comes last."""
    task = BioS(people=4000, cities=4, universities=4, majors=4, employers=4)
    columns = task.values[:, [3, 4, 5, 6, 7]].T
    for i, one in enumerate(columns):
        for other in columns[:i]:
            joint = np.unique(np.stack([one, other]), axis=1, return_counts=True)[1]
            assert joint / 4000 == pytest.approx(np.full(len(joint), 1 / len(joint)), abs=0.025)


def test_bio_s_parts_are_the_values_and_the_first_pronoun() -> None:
    task = BioS(people=60)
    arrays = task.evaluation("test", 60)
    for targets, part in zip(arrays["targets"], arrays["part"], strict=True):
        by_part = {name: targets[part == k].tolist() for k, name in enumerate(task.parts)}
        assert [len(by_part[name]) for name in task.parts] == [3, 3, 1, 1, 1, 1, 1]
        person = task.names.tolist().index(by_part["name"])
        assert [token for name in task.parts[1:] for token in by_part[name]] == task.values[person].tolist()
        assert (part[targets == -100] == -1).all()
        first = int((part == task.parts.index("pronoun")).argmax())
        assert task.words[targets[first - 1]] == "."
        assert "." not in [task.words[token] for token in targets[: first - 1]]


def test_evaluation_never_tells_the_working_city_before_the_employer() -> None:
    task = BioS(people=200)
    for row in task.evaluation("val", 200)["tokens"]:
        assert list(text_parts(task, np.append(row, 0))[1])[-1] in ("working_city", "pronoun")
        last = task.text(np.append(row, 0)).split(" <eos>")[0].split(". ")[-1]
        assert any(" ".join(words) in last for words in biographies.templates("working_city", 3))


def test_templates_are_prefix_free() -> None:
    """So a perfect model pays nothing for the wording at a value's place (tasks.md §2.4)."""
    leads = [
        tuple(words) for name in biographies.PHRASES for words in biographies.templates(name, biographies.TEMPLATES)
    ]
    assert len(leads) == len(set(leads)) == 300
    ordered = sorted(leads)
    assert not any(later[: len(lead)] == lead for lead, later in pairwise(ordered))


def test_lists_have_no_repeats() -> None:
    words = biographies.invented(10_000)
    assert len(set(words)) == 10_000
    task = BioS(people=10)
    assert len(set(task.words)) == len(task.words) == task.vocab_size


def test_published_bio_s_has_the_published_entropy() -> None:
    task = BioS(100, [400, 400, 1000], years=200, cities=200, universities=300, majors=100, employers=263, templates=50)
    assert sum(term.log2_choices for term in task.terms[1:]) == pytest.approx(47.5916, abs=5e-5)
    assert task.terms[0].log2_choices == pytest.approx(27.2535, abs=5e-5)
    assert 2900 < task.vocab_size < 3300  # GPT-2's used rows are 3,275
