"""Words of bioS: lists made from syllables and sentence templates, all our own.

A template is the words between a sentence's subject and its value. All of them together are prefix-free, so a reader
knows at the value's place that a value comes, and which attribute's: otherwise even a perfect model would pay there for
the branch (0.28 bits a person with the published templates, tasks.md §2.4).
"""

MONTHS = ("January", "February", "March", "April", "May", "June")
MONTHS += ("July", "August", "September", "October", "November", "December")
PRONOUNS = ("He", "She")

# Two slots per attribute, ten openings and five joints: 50 templates. No phrase of a slot begins another one.
PHRASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "birth_date": (
        ("was born", "arrived", "came along", "entered life", "began life")
        + ("appeared", "drew breath", "saw daylight", "joined the family", "started out"),
        ("on", "exactly on", "early on", "late on", "punctually on"),
    ),
    "birth_city": (
        ("was raised", "spent childhood", "first lived", "has roots", "learned to walk")
        + ("kept a cradle", "took first steps", "was baptised", "was registered", "made first friends"),
        ("in", "right in", "inside", "within", "over in"),
    ),
    "university": (
        ("studied", "enrolled", "graduated", "read books", "sat exams")
        + ("attended lectures", "lived on campus", "won a scholarship", "earned a degree", "passed finals"),
        ("at", "down at", "up at", "away at", "back at"),
    ),
    "major": (
        ("specialised", "majored", "trained", "excelled", "wrote a thesis")
        + ("gave talks", "did research", "passed a course", "showed talent", "took a diploma"),
        ("in", "mostly in", "mainly in", "purely in", "chiefly in"),
    ),
    "employer": (
        ("works", "earns wages", "runs projects", "has a job", "holds a post")
        + ("leads a team", "draws a salary", "keeps the books", "answers calls", "builds things"),
        ("for", "only for", "still for", "now for", "today for"),
    ),
    "working_city": (
        ("commutes", "parks", "eats lunch", "meets clients", "reports for duty")
        + ("rents an office", "shows up daily", "signs contracts", "opens the shop", "catches the bus"),
        ("around", "in downtown", "in central", "in outer", "near greater"),
    ),
}
TEMPLATES = 50  # per attribute

_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


def templates(attribute: str, count: int) -> list[list[str]]:
    """The first `count` templates of an attribute as lists of words; the first ten differ in their opening alone."""
    openings, joints = PHRASES[attribute]
    return [f"{openings[k % 10]} {joints[k // 10]}".split() for k in range(count)]


def invented(count: int, ending: str = "") -> list[str]:
    """Different pronounceable words of three syllables, as many as asked for, each with the ending of its kind."""
    base = len(_SYLLABLES)
    step = 98_767  # shares no factor with 70³: neighbours in the list look unlike
    numbers = [(7 + k * step) % base**3 for k in range(count)]
    spelled = (_SYLLABLES[n // base**2] + _SYLLABLES[n // base % base] + _SYLLABLES[n % base] for n in numbers)
    return [word.capitalize() + ending for word in spelled]
