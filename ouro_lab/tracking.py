"""Run directories → MLflow. Idempotent: push twice, in pieces, after a kill, and the store holds each number once.

The run's directory is the truth and the store a view of it: a store that is down costs one warning and no number,
the next push completes it. Only this file and tracking_store.py import mlflow, and only when something is sent.

    python -m ouro_lab.tracking ui [--port N]      the MLflow UI on this machine
    python -m ouro_lab.tracking push NAME          every run of a study, and its report
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ouro_lab import records
from ouro_lab.tracked import VALUE, Point, Tracked, view_of
from ouro_lab.tracking_store import Store, attempt, locked

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

ID = "ouro.run"
CURSOR = "ouro.step"  # metrics are complete up to this step
SENT = "ouro.sent"  # digest of everything else
BATCH = 1000  # entities per request, MLflow's limit
PARAMETERS = 100  # per request, MLflow's limit
FILES = ("config.yaml", "record.json", "run.json")
STATUS = {"done": "FINISHED", "diverged": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


def push(run_dir: Path, store: Store) -> bool:
    """Sends what a run's directory holds and the store does not; False if the store could not take it.

    A diverged run is FINISHED with the tag state=diverged: a datum, not an accident.
    """
    if not store.enabled or not (run_dir / "run.json").is_file():
        return True

    def send(client: "MlflowClient") -> None:
        with locked(run_dir / ".push.lock"):
            _push(client, store, Tracked(run_dir))

    return attempt(store, send)


def push_study(folder: Path, store: Store) -> bool:
    """Pushes every run directory of a study; stops at the first that the store does not take."""
    return all(push(path.parent, store) for path in sorted(folder.glob("*/run.json")))


def push_report(study: str, folder: Path, store: Store) -> bool:
    """Puts a report and its figures into the study's one run named `report`, whose description is report.md."""
    found = [*folder.glob("[!.]*"), *folder.glob("figures/[!.]*")] if folder.is_dir() else []
    files = sorted(path for path in found if path.is_file())
    if not store.enabled or not files:
        return True

    def send(client: "MlflowClient") -> None:
        with locked(folder.with_name(f".{folder.name}.lock")):
            run = _find_or_create(client, _experiment(client, store, study, {}), "report", None)
            digest = _digest([str(path.relative_to(folder)) for path in files], files)
            if run.data.tags.get(SENT) != digest:
                for path in files:
                    place = path.parent.relative_to(folder).as_posix()
                    client.log_artifact(run.info.run_id, str(path), None if place == "." else place)
                text = (folder / "report.md").read_text() if (folder / "report.md").is_file() else ""
                _tag(client, run, {"mlflow.note.content": text[:5000], SENT: digest})
                client.set_terminated(run.info.run_id)

    return attempt(store, send)


def _push(client: "MlflowClient", store: Store, tracked: Tracked) -> None:
    experiment = _experiment(client, store, tracked.run["study"], tracked.study)
    run = _find_or_create(client, experiment, tracked.run["id"], tracked)
    cursor = int(run.data.tags.get(CURSOR, -1))
    parameters, tags = tracked.parameters(), tracked.tags()
    files = [tracked.directory / name for name in FILES if (tracked.directory / name).is_file()]
    digest = _digest([parameters, tags, tracked.final], files)
    if run.data.tags.get(SENT) == digest and (tracked.ended or tracked.checkpoint <= cursor):
        return
    points, upto = tracked.points(cursor)
    _send_metrics(client, run.info.run_id, points)
    _send_parameters(client, run, parameters)
    for path in files:
        client.log_artifact(run.info.run_id, str(path))
    _set_status(client, run, tracked)
    # Last: a push that dies before this line is repeated in full, and the store knows each point by
    # (name, time, step, value), which are the row's own.
    _tag(client, run, tags | {CURSOR: str(upto), SENT: digest})


def _experiment(client: "MlflowClient", store: Store, name: str, study: dict[str, Any]) -> str:
    """The study's experiment, with its question as description and a view of few columns."""
    found = client.get_experiment_by_name(name)
    tags = view_of(study)
    if found is None:
        place = (store.artifacts / quote(name)).as_uri() if store.artifacts else None
        return _new_experiment(client, name, place, tags)
    for key, value in tags.items() if study else ():
        if found.tags.get(key) != value:
            client.set_experiment_tag(found.experiment_id, key, value)
    return found.experiment_id


def _new_experiment(client: "MlflowClient", name: str, place: str | None, tags: dict[str, str]) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return client.create_experiment(name, artifact_location=place, tags=tags)
    except MlflowException:  # another process was faster
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return found.experiment_id


def _find_or_create(client: "MlflowClient", experiment: str, name: str, tracked: Tracked | None) -> "Run":
    found = client.search_runs([experiment], f"tags.`{ID}` = '{name}'", max_results=1)
    if found:
        return found[0]
    start = tracked.started if tracked else None
    source = {"mlflow.source.name": "ouro_lab.run", "mlflow.source.type": "LOCAL"}
    commit = tracked.record.get("git", {}).get("commit") if tracked else None
    source |= {"mlflow.source.git.commit": commit} if commit else {}
    return client.create_run(experiment, start_time=start, run_name=name, tags={ID: name, **source})


def _send_metrics(client: "MlflowClient", run_id: str, points: list[Point]) -> None:
    from mlflow.entities import Metric

    metrics = [Metric(point.name, point.value, point.time, point.step) for point in points]
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + BATCH])


def _send_parameters(client: "MlflowClient", run: "Run", parameters: dict[str, str]) -> None:
    """New ones as parameters; a store refuses to change one, so what a resumed run changed becomes a tag."""
    from mlflow.entities import Param

    known = run.data.params
    new = [Param(name, value) for name, value in parameters.items() if name not in known]
    for start in range(0, len(new), PARAMETERS):
        client.log_batch(run.info.run_id, params=new[start : start + PARAMETERS])
    changed = {name: value for name, value in parameters.items() if known.get(name, value) != value}
    _tag(client, run, {f"drift.{name}"[:VALUE]: value for name, value in changed.items()})


def _set_status(client: "MlflowClient", run: "Run", tracked: Tracked) -> None:
    status = STATUS.get(tracked.status, "RUNNING")
    if status == "RUNNING":
        if run.info.status != "RUNNING":
            client.update_run(run.info.run_id, status)
    else:
        client.set_terminated(run.info.run_id, status, tracked.stopped)


def _tag(client: "MlflowClient", run: "Run", tags: dict[str, str]) -> None:
    from mlflow.entities import RunTag

    new = [RunTag(name, value) for name, value in tags.items() if run.data.tags.get(name) != value]
    if new:
        client.log_batch(run.info.run_id, tags=new)


def _digest(content: Any, files: list[Path]) -> str:
    whole = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode())
    for path in files:
        whole.update(path.read_bytes())
    return whole.hexdigest()[:16]


def main(arguments: list[str]) -> int:
    """Exit status: 0 fine, 1 the store did not take everything, 2 bad input or no store."""
    from ouro_lab.tracking_ui import serve

    if arguments[:1] == ["ui"]:
        return serve(Store(), arguments[1:])
    if len(arguments) == 2 and arguments[0] == "push":
        return _push_named(arguments[1], Store())
    print("usage: python -m ouro_lab.tracking ui [--port N] | push NAME", file=sys.stderr)
    return 2


def _push_named(name: str, store: Store) -> int:
    folder = records.runs_root() / name
    runs = sorted(path.parent for path in folder.glob("*/run.json"))
    if not runs:
        print(f"error: {name}: no runs in {folder}", file=sys.stderr)
        return 2
    taken = store.prepare() and push_study(folder, store) and push_report(name, folder / "report", store)
    print(f"{name}: {len(runs)} runs in {store.address}" if taken else f"{name}: the store did not take everything")
    return 0 if taken else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
