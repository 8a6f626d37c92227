"""From the files of Debian packages to documents: dictionaries in dictd's format, and reStructuredText.

An index of dictd has a line per headword: the word, the entry's first byte and its length in the unpacked dictionary,
tab-separated, both numbers in base 64 (dictd(8), "Database format").
"""

import gzip
import re
import string
from collections.abc import Iterator, Mapping
from contextlib import suppress

_DIGITS = {digit: value for value, digit in enumerate(f"{string.ascii_uppercase}{string.ascii_lowercase}0123456789+/")}
_LINK = re.compile(r"\{([^{}]*)\}")
_MARK = re.compile(r"\s*\[(?:1913 Webster|Webster 1913 Suppl\.|WordNet 1\.5|PJC|RH|AS|AHD|MW10|mhd)[^\[\]]*\]")
_SENSE = re.compile(r"(?:^|\n)\s*(?:(?:n|v|adj|adv) )?\d+: ")
_RELATED = re.compile(r"\s*\[(?:syn|ant|also): [^\[\]]*\]")

Members = Mapping[str, bytes]  # name in the package → content


def entries(members: Members) -> Iterator[str]:
    """Every entry of a dictionary once, without indentation, link braces and the marks of its sources."""
    for entry in _raw_entries(members):
        yield _unindented(_MARK.sub("", _LINK.sub(r"\1", entry)))


def glosses(members: Members) -> Iterator[str]:
    """WordNet's headwords with those of their senses that no headword before had: synonyms share theirs."""
    seen: set[str] = set()
    for entry in _raw_entries(members):
        head, _, body = entry.strip().partition("\n")
        senses = [" ".join(_RELATED.sub("", sense).split()) for sense in _SENSE.split(body)]
        new = [sense for sense in dict.fromkeys(senses) if sense and sense not in seen]
        seen.update(new)
        if new:
            yield "\n".join([head, *new])


def sources(members: Members) -> Iterator[str]:
    """Files of documentation by name, as they are written."""
    for name in sorted(members):
        data = members[name]
        yield _decoded(name, gzip.decompress(data) if name.endswith(".gz") else data)


def is_dictionary(name: str) -> bool:
    return name.startswith("usr/share/dictd/") and name.endswith((".dict.dz", ".index"))


def is_kernel_source(name: str) -> bool:
    return "/Documentation/" in name and name.endswith(".rst.gz") and "/translations/" not in name


def is_python_source(name: str) -> bool:
    return "/html/_sources/" in name and name.endswith(".rst.txt")


def _raw_entries(members: Members) -> Iterator[str]:
    """By place, without headwords that tell of the database itself and the few entries that are not UTF-8."""
    (packed,) = (name for name in members if name.endswith(".dict.dz"))
    text = gzip.decompress(members[packed])
    lines = [line.split("\t") for line in _decoded(packed, members[packed.replace(".dict.dz", ".index")]).splitlines()]
    spans = {(_number(start), _number(size)) for head, start, size, *_ in lines if not head.startswith("00")}
    for start, size in sorted(spans):
        with suppress(UnicodeDecodeError):
            yield text[start : start + size].decode("utf-8")


def _number(digits: str) -> int:
    value = 0
    for digit in digits:
        value = value * 64 + _DIGITS[digit]
    return value


def _unindented(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


def _decoded(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"package file {name}: cannot be read as UTF-8 text ({error.reason})") from error
