"""Where runs are tracked: one MLflow store, made once under a lock, and given up on soon when it does not answer."""

import contextlib
import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ouro_lab import records
from ouro_lab.secrets import redact
from ouro_lab.tracked import VIEW, VIEW_TAG

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PATIENCE = 2.0  # seconds for a locked SQLite file

log = logging.getLogger(__name__)
_warned: set[str] = set()


class StoreError(OSError):
    """The store cannot be used now; one line."""


@dataclass(frozen=True)
class Store:
    """Where runs are tracked. uri: None is `MLFLOW_TRACKING_URI`, else mlflow.db in the runs' directory."""

    uri: str | None = None
    enabled: bool = True

    @property
    def address(self) -> str:
        default = f"sqlite:///{records.runs_root() / 'mlflow.db'}"
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI") or default

    @property
    def database(self) -> Path | None:
        """The SQLite file, None for a server."""
        return Path(self.address.removeprefix("sqlite:///")) if self.address.startswith("sqlite:///") else None

    @property
    def artifacts(self) -> Path | None:
        """Beside the SQLite file; a server has its own place."""
        return self.database.absolute().parent / "mlflow_artifacts" if self.database else None

    def prepare(self) -> bool:
        """Creates or upgrades the database under a lock; without it parallel first use leaves it broken."""
        return not self.enabled or attempt(self, lambda client: client.search_experiments(max_results=1), _create)

    def missing(self) -> str | None:
        """Why the store cannot be read, in one line; None if it can."""
        try:
            if self.database is None:
                with _settings(self):
                    client_of(self).search_experiments(max_results=1)
            elif not self.database.is_file():
                return f"tracking store {redact(self.address)}: no such file; make experiment NAME=… creates it"
            else:
                _check_file(self.database)
        except Exception as error:
            if not _is_the_stores(error):
                raise
            return redact(f"tracking store {self.address}: {_line(error)}")
        return None

    def pages(self, url: str) -> list[str]:
        """A line per study: its name and the address of its runs, few columns, under a server's `url`."""
        with _settings(self):
            found = client_of(self).search_experiments()
        named = sorted((each.name, each.experiment_id) for each in found if VIEW_TAG in each.tags)
        return [f"{name}  {url}/#/experiments/{number}/runs?viewStateShareKey={VIEW}" for name, number in named]


def attempt(
    store: Store, action: Callable[["MlflowClient"], Any], before: Callable[[Store], None] | None = None
) -> bool:
    """Does `action`, after `before`; a store that fails is one warning per process and reason."""
    try:
        with _settings(store):
            if store.database is not None:
                if before is not None or not store.database.is_file():
                    (before or _create)(store)
                _check_file(store.database)
            action(client_of(store))
    except Exception as error:
        if not _is_the_stores(error):
            raise
        said = redact(f"tracking store {store.address}: {_line(error)}")
        said += "; the run's own files hold everything for a later push"
        _warn(said, f"{store.address} {type(error).__name__}")  # not each page of a server that is down
        return False
    return True


def client_of(store: Store) -> "MlflowClient":
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(store.address)


def _create(store: Store) -> None:
    """A SQLite store's tables, at the version of the mlflow that is installed.

    A new file gets its name when it is whole: a process that comes meanwhile, and asks whether it is there, would take
    half a schema for a store, and what it then does leaves the file broken for good.
    """
    database = store.database
    if database is None:
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with locked(database.with_name(f"{database.name}.lock")):
        if database.is_file():
            _check_file(database)
            _upgrade(store.address)
            return
        for left in database.parent.glob(f".{database.name}.*"):  # by a process that was killed here
            left.unlink(missing_ok=True)
        beside = database.with_name(f".{database.name}.{os.getpid()}")
        _make(f"sqlite:///{beside}", store)
        beside.replace(database)


def _make(address: str, store: Store) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    made = SqlAlchemyStore(address, store.artifacts.as_uri() if store.artifacts else ".")
    made.engine.dispose()


def _upgrade(address: str) -> None:
    from mlflow.store.db import utils

    engine = utils.create_sqlalchemy_engine(address)
    try:
        version = utils._get_schema_version(engine)
        if version is not None and version != utils._get_latest_schema_revision():
            utils._upgrade_db(engine)
    finally:
        engine.dispose()


def _check_file(path: Path) -> None:
    """Fails at once where MLflow would retry for minutes: not a database, not writable, locked."""
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise StoreError(str(error)) from None


@contextlib.contextmanager
def _settings(store: Store) -> Generator[None, None, None]:
    """MLflow reads these from the environment; they hold only during our calls."""
    wanted = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    if store.artifacts is not None:  # else the store's default experiment names the current directory
        wanted["_MLFLOW_SERVER_ARTIFACT_ROOT"] = store.artifacts.as_uri()
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def locked(path: Path) -> Generator[None, None, None]:
    with path.open("a") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_the_stores(error: Exception) -> bool:
    known = ("mlflow", "sqlalchemy", "alembic", "sqlite3", "requests", "urllib3")
    return isinstance(error, (OSError, ImportError)) or type(error).__module__.split(".")[0] in known


def _line(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return (first or type(error).__name__)[:200]


def _warn(message: str, reason: str) -> None:
    if reason not in _warned:
        _warned.add(reason)
        log.warning(message)
