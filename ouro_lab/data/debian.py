"""Debian packages without root and without installing: apt's own index, in a folder of ours, and `dpkg-deb` to read."""

import re
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


class Apt:
    """apt with the machine's sources and keys, whose lists and downloads live in `folder`."""

    def __init__(self, folder: Path) -> None:
        for tool in ("apt-get", "apt-cache", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise FileNotFoundError(f"{tool}: not on this machine; must be Debian, Ubuntu or one of their kind")
        self.folder = folder
        for part in ("state/lists/partial", "cache/archives/partial"):
            (folder / part).mkdir(parents=True)
        settings = {"Dir::State": folder / "state", "Dir::State::status": "/var/lib/dpkg/status"}
        settings |= {"Dir::Cache": folder / "cache", "APT::Sandbox::User": "", "APT::Update::Error-Mode": "any"}
        self.options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]

    def update(self) -> None:
        self._run("apt-get", "update")

    def resolve(self, name: str, versioned: str) -> str:
        """The package that `name` depends on and whose name begins with `versioned`; `name` itself for ""."""
        if not versioned:
            return name
        found = re.search(rf"Depends: ({re.escape(versioned)}\S+)", self._run("apt-cache", "depends", name))
        return found.group(1) if found else name

    def download(self, name: str) -> Path:
        """The package's file, its digest checked by apt against the signed index."""
        self._run("apt-get", "download", name)
        return next(self.folder.glob(f"{name}_*.deb"))

    def _run(self, tool: str, *words: str) -> str:
        """Raises: FileNotFoundError with the tool's first complaint."""
        command = [tool, *self.options, *words]
        ended = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if ended.returncode:
            complaints = [line for line in ended.stderr.splitlines() if line.startswith(("E:", "W:"))]
            reason = (complaints or [f"exit status {ended.returncode}"])[0]
            raise FileNotFoundError(f"{tool} {' '.join(words)}: {reason}; needs the network and Debian's packages")
        return ended.stdout


def version(archive: Path) -> str:
    command = ["dpkg-deb", "--field", str(archive), "Version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def unpacked(archive: Path) -> Generator[IO[bytes]]:
    """The tar stream of a package's files.

    Raises: ValueError when `dpkg-deb` cannot read it.
    """
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        yield process.stdout
        process.stdout.read()  # what follows the last member, or dpkg-deb would end by a broken pipe
    if process.returncode:
        raise ValueError(f"package {archive.name}: dpkg-deb cannot read it")
