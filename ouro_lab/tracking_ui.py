"""The MLflow UI on this machine, for the store of `runs_root()`."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from ouro_lab.tracking_store import Store

PORT = 5000
START = 120.0  # seconds; 9–13 were measured on two cores


def serve(store: "Store", arguments: list[str]) -> int:
    """Serves until Ctrl-C or SIGTERM. Exit status: 0 stopped, 1 the server failed, 2 no store or no port."""
    parser = argparse.ArgumentParser(prog="python -m ouro_lab.tracking ui")
    parser.add_argument("--port", type=int, default=PORT)
    port = parser.parse_args(arguments).port
    trouble = store.missing() or (None if _free(port) else f"port {port} is taken; give --port N")
    if trouble:
        print(f"error: {trouble}", file=sys.stderr)
        return 2
    if store.database is None:
        print(f"the store is a server with its own page: {store.address}", flush=True)
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    with tempfile.TemporaryFile() as said:
        # A group of its own: the server's workers must end with it, and only when we say so.
        server = subprocess.Popen(
            _command(store, port), env=_environment(), start_new_session=True, stdout=said, stderr=said
        )
        try:
            return _wait(server, store, f"http://127.0.0.1:{port}", said)
        except KeyboardInterrupt:
            return 0
        finally:
            _stop(server)


def _command(store: "Store", port: int) -> list[str]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store.address]
    return command + (["--default-artifact-root", store.artifacts.as_uri()] if store.artifacts else [])


def _environment() -> dict[str, str]:
    """No telemetry, and no job consumers: ten processes become two, and none outlives the server."""
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return os.environ | quiet | {"MLFLOW_LOGGING_LEVEL": "ERROR"}


def _wait(server: subprocess.Popen[bytes], store: "Store", url: str, said: IO[bytes]) -> int:
    deadline = time.monotonic() + START
    while not _healthy(url):
        if server.poll() is not None or time.monotonic() > deadline:
            return _failed(server, "did not start", said)
        time.sleep(0.3)
    print("\n".join([f"MLflow UI: {url}  (Ctrl-C stops it)", *store.pages(url)]), flush=True)
    server.wait()
    return _failed(server, "ended", said)


def _failed(server: subprocess.Popen[bytes], how: str, said: IO[bytes]) -> int:
    said.seek(0)
    last = said.read().decode(errors="replace").splitlines()[-15:]
    print("\n".join([*last, f"error: the server {how} (exit status {server.poll()})"]), file=sys.stderr)
    return 1


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    for number, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
        try:
            os.killpg(server.pid, number)
            server.wait(timeout=seconds)
        except (ProcessLookupError, PermissionError):
            return
        except subprocess.TimeoutExpired:
            continue
        time.sleep(0.2)  # the workers, which share the group, follow their parent


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
