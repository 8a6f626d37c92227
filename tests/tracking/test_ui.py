"""The command line: MLflow's pages, and pushing a study."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.tracking.fake_run import ROOT


def command_line(root: Path, *words: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | {"OURO_RUNS": str(root)}
    command = [sys.executable, "-m", "ouro_lab.tracking", *words]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_the_ui_without_a_store_is_one_line(tmp_path: Path) -> None:
    process = command_line(tmp_path, "ui")
    out, error = process.communicate(timeout=30)
    assert (process.returncode, out, len(error.splitlines())) == (2, "", 1)
    assert "no such file" in error


def test_pushing_an_unknown_study_is_one_line(tmp_path: Path) -> None:
    process = command_line(tmp_path, "push", "nothing")
    _, error = process.communicate(timeout=30)
    assert (process.returncode, len(error.splitlines())) == (2, 1)


@pytest.mark.slow
def test_the_ui_answers_and_leaves_no_process(tmp_path: Path, prepared: Path) -> None:
    shutil.copyfile(prepared, tmp_path / "mlflow.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = command_line(tmp_path, "ui", "--port", str(port))
    try:
        assert f"http://127.0.0.1:{port}" in process.stdout.readline()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            assert answer.status == 200
        assert with_argument(str(port))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
    assert process.returncode == 0
    deadline = time.monotonic() + 5
    while with_argument(str(port)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert with_argument(str(port)) == []


def with_argument(word: str) -> list[int]:
    """Processes that were started with this word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(word == each or each.endswith(f":{word}") for each in words):
            found.append(int(path.parent.name))
    return found
