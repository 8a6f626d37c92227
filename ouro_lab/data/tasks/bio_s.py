"""bioS(N): biographies in words, six sentences in random order with random templates (Part 3.3; Ouro §6.1)."""

import math

import numpy as np

from ouro_lab.data.random import Bits, Ints, bits, integers
from ouro_lab.data.tasks import biographies as lists
from ouro_lab.data.tasks.capo import Capo
from ouro_lab.data.tasks.protocol import IGNORE, TRAIN, Arrays, check_range
from ouro_lab.evaluation.capacity import NAME, bio_s_terms

SENTENCES = tuple(lists.PHRASES)  # the last one, the working city, has no entropy of its own
SCORED = (*SENTENCES[:-1], "pronoun")
DAYS = 28
COLUMNS = {"birth_date": (0, 3), "birth_city": (3, 4), "university": (4, 5), "major": (5, 6), "employer": (6, 7)}
HOLE = -1  # a place without a token, before a row is closed up


class BioS(Capo):
    """`<eos>` full name … `.` pronoun … `.` — six sentences — `<eos>`; one token per word, name and value.

    names: sizes of the first, middle and last name lists. years to employers: value counts, uniform and independent;
    an employer's city is the working city. templates: per attribute, 1 … 50. simple: one wording per person in every
    exposure (bioS_simple), the working city last, as in evaluation, which so asks for the very text. they: everybody is
    "They", as in Ouro's example, and the pronoun worth no bit; else He or She, independent of the name.

    S₀ is the product of exactly the attributes whose loss counts: birth date, birth city (Ouro's §6.1 leaves it out,
    its App. B and S₀ do not), university, major, employer and the pronoun, at the second sentence's first token.
    """

    parts = (NAME, *SCORED)

    def __init__(
        self,
        people: int = 2000,
        names: tuple[int, ...] | list[int] = (40, 40, 100),
        years: int = 50,
        cities: int = 50,
        universities: int = 60,
        majors: int = 40,
        employers: int = 50,
        templates: int = 3,
        simple: bool = False,
        they: bool = False,
        population: int = 0,
    ) -> None:
        if len(names) != 3:
            raise ValueError(f"names = {list(names)}: must be three sizes: first, middle and last names")
        for size in names:
            check_range("names", size, 1, 10_000)
        super().__init__(people, list(names), population)
        sizes = {"years": years, "cities": cities, "universities": universities, "majors": majors}
        sizes["employers"] = employers
        for field, size in sizes.items():
            check_range(field, size, 1, 10_000)
        check_range("templates", templates, 1, lists.TEMPLATES)
        self.templates, self.simple, self.draws = templates, bool(simple), 2 * len(SENTENCES)
        self.pronouns = ("They",) if they else lists.PRONOUNS
        counts = [len(lists.MONTHS) * DAYS * years, cities, universities, majors, employers, len(self.pronouns)]
        self.terms = bio_s_terms(people, math.prod(names), dict(zip(SCORED, counts, strict=True)))
        self._facts(sizes)
        self._leads = [self._lead_table(attribute) for attribute in SENTENCES]
        self._longest = 3 + sum(table.shape[1] for table in self._leads) + 8 + 5 + 6  # name, values, pronouns, stops
        self.sequence_length = 1 + self._longest

    def text(self, tokens: Ints) -> str:
        """One row [S] as a person reads it."""
        return " ".join(self.words[token] for token in tokens).replace(" .", ".")

    def write(self, person: Ints, words: Bits, split: str) -> Arrays:
        if self.simple:
            words = bits(self.population, "capo/simple", person, self.draws)
        order = self._order(words[:, : len(SENTENCES)], employer_first=self.simple or split != TRAIN)
        chosen = integers(words[:, len(SENTENCES) :], self.templates)
        sentences = [self._sentence(k, person, chosen[:, k]) for k in range(len(SENTENCES))]
        width = max(tokens.shape[1] for tokens, _ in sentences)
        told, part = (np.stack([_widened(pair[i], width) for pair in sentences], 1) for i in (0, 1))  # [B, 6, W]
        told, part = (np.take_along_axis(array, order[:, :, None], 1) for array in (told, part))
        told[:, 0, :3], part[:, 0, :3] = self.names[person], 0
        told[:, 1:, 0] = self.values[person, -1][:, None]
        part[:, 1, 0] = self.parts.index("pronoun")
        return self._closed(told.reshape(len(person), -1), part.reshape(len(person), -1))

    def _order(self, words: Bits, employer_first: bool) -> Ints:
        """Sentences [B, 6] by place. Evaluation puts the working city last: before the employer it would tell of it."""
        keys = words >> np.uint64(1)
        if employer_first:
            keys[:, -1] = np.uint64(1) << np.uint64(63)
        return np.argsort(keys, axis=1, kind="stable")

    def _sentence(self, which: int, person: Ints, template: Ints) -> tuple[Ints, Ints]:
        """Tokens and parts [B, W] of one attribute's sentence, its subject left open."""
        attribute = SENTENCES[which]
        value = self.work[person] if attribute == SENTENCES[-1] else self.values[person, slice(*COLUMNS[attribute])]
        lead = self._leads[which][template]
        subject, stop = np.full((len(person), 3), HOLE), np.full((len(person), 1), self.words.index("."))
        tokens = np.concatenate([subject, lead, value, stop], axis=1)
        part = np.full(tokens.shape, -1)
        if attribute in SCORED:
            start = 3 + lead.shape[1]
            part[:, start : start + value.shape[1]] = self.parts.index(attribute)
        return tokens, part

    def _closed(self, tokens: Ints, part: Ints) -> Arrays:
        """Rows without their holes, between `<eos>`; nothing is predicted behind the second."""
        place = np.argsort(tokens == HOLE, axis=1, kind="stable")[:, : self._longest]
        tokens, part = (np.take_along_axis(array, place, 1) for array in (tokens, part))
        size = (tokens != HOLE).sum(axis=1, keepdims=True)
        edge = np.zeros((len(tokens), 1), np.int64)
        tokens = np.concatenate([edge, np.maximum(tokens, 0), edge], axis=1)
        arrays = self._arrays(tokens, np.concatenate([edge - 1, part, edge - 1], axis=1))
        return arrays | {"targets": np.where(np.arange(self._longest + 1) <= size, arrays["targets"], IGNORE)}

    def _facts(self, sizes: dict[str, int]) -> None:
        """The vocabulary, and the tokens of every person's name, values and working city."""
        spoken = {word for name in SENTENCES for words in lists.templates(name, self.templates) for word in words}
        self.words = ["<eos>", ".", *sorted(spoken)]
        names = [self._add(lists.invented(n, end)) for n, end in zip(self.lists, ("", "el", "sen"), strict=True)]
        self.names = self.names + np.array(names)
        months, days = self._add(lists.MONTHS), self._add([str(day) for day in range(1, DAYS + 1)])
        years = self._add([str(1900 + year) for year in range(sizes["years"])])
        endings = {"cities": "ville", "universities": " University", "majors": "ology", "employers": " Works"}
        starts = [self._add(lists.invented(sizes[kind], ending)) for kind, ending in endings.items()]
        starts = [months, days, years, *starts, self._add(self.pronouns)]
        counts = [len(lists.MONTHS), DAYS, *sizes.values(), len(self.pronouns)]
        drawn = bits(self.population, "capo/values", np.arange(self.people), len(counts))
        chosen = np.stack([integers(drawn[:, k], count) for k, count in enumerate(counts)], axis=1)
        self.values = chosen + np.array(starts)  # [people, 8]
        homes = integers(bits(self.population, "capo/homes", np.arange(sizes["employers"]), 1), sizes["cities"])
        self.work = starts[3] + homes[chosen[:, -2]]  # [people, 1]
        self.vocab_size = len(self.words)

    def _add(self, words: list[str] | tuple[str, ...]) -> int:
        """The id of the first of these words."""
        self.words.extend(words)
        return len(self.words) - len(words)

    def _lead_table(self, attribute: str) -> Ints:
        """[templates, longest]: token ids, holes behind shorter ones."""
        ids = {word: token for token, word in enumerate(self.words)}
        rows = [[ids[word] for word in words] for words in lists.templates(attribute, self.templates)]
        longest = max(map(len, rows))
        return np.array([row + [HOLE] * (longest - len(row)) for row in rows])


def _widened(array: Ints, width: int) -> Ints:
    return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=HOLE)
