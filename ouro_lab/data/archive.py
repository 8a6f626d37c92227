"""Members of a tar archive read in memory. Nothing is unpacked: no name from an archive ever becomes a path here."""

import tarfile
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import BinaryIO


def members(stream: BinaryIO, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the wanted regular files; links are none.

    Raises: ValueError for a damaged archive, and for one with a name outside of itself, wanted or not: whoever writes
    such a name is not to be read.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts:
                    raise ValueError(f"archive member {member.name!r}: leads out of the archive; refused")
                if member.isreg() and wanted(str(name)):
                    yield str(name), archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"archive: cannot be read as tar ({error})") from error
