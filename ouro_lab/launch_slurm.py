"""SLURM through submitit: a study's runs as an array, and after it a job that reports and submits what is left."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ouro_lab import records
from ouro_lab.config import ROOT, ConfigError, nearest
from ouro_lab.launch import Watch, bury, length_of
from ouro_lab.ranks import own_rank
from ouro_lab.study import Run

CLUSTERS = ("slurm", "local")
SITE = ("SLURM_CONF",)  # where SLURM is, and not what a job of it has
COUNTS = ("minutes", "grace", "requeues", "threads", "parallel")
REQUEUE = 128 + signal.SIGUSR2  # how training ends where its time is up: `training.preemption`
Shape = tuple[int, int, bool]  # nodes, ranks per node, whether these have GPUs


@dataclass(frozen=True)
class Slurm:
    """Each run is a job with as many tasks as its trainer has ranks; Lightning finds them there.

    partition, account, qos: sbatch's. minutes: a job's time limit. grace: seconds before it at which a run is told to
    write a checkpoint and submitit queues it again, so often as `requeues` says. threads: cores per rank. memory_gb:
    per node. parallel: runs at once. setup: shell lines before a run, as `module load`. options: more of sbatch's, by
    their names. cluster: submitit's; `local` runs the jobs on this machine, all at once, and nothing after them.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    minutes: int = 240
    grace: int = 120
    requeues: int = 100
    threads: int = 1
    memory_gb: float | None = None
    parallel: int = 32
    setup: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    cluster: str = "slurm"

    def __post_init__(self) -> None:
        for name in COUNTS:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"launcher.{name} = {value!r}: must be an integer ≥ 1")
        if self.grace >= self.minutes * 60:
            raise ValueError(f"launcher.grace = {self.grace}: must be less than launcher.minutes = {self.minutes}")
        if self.cluster not in CLUSTERS:
            raise ValueError(f"launcher.cluster = {self.cluster}: {nearest(self.cluster, CLUSTERS)}")

    def room(self, accelerator: str, devices: int) -> int:
        return self.parallel

    def execute(self, todo: Callable[[], list[Run]], everything: Callable[[], list[Run]], watch: Watch) -> bool:
        """Submits what `todo` says and is in no queue yet, longest first, and returns.

        Returns whether there is anything to report yet.

        Raises:
            ConfigError: submitit is not installed, or there is no SLURM here.
        """
        check_installed(self.cluster)
        runs = everything()
        if not runs:
            return True
        folder = records.runs_root() / runs[0].study / "slurm"
        queued = self._take_stock(runs, folder)
        waiting = sorted((run for run in todo() if run.id not in queued), key=length_of, reverse=True)
        if waiting:
            self._submit_all(waiting, queued, folder)
        elif queued:
            print(f"{runs[0].study}: {len(queued)} runs are in the queue, and no other waits", flush=True)
        return any(run.finished for run in runs)

    def _submit_all(self, waiting: Sequence[Run], queued: Mapping[str, str], folder: Path) -> None:
        """The runs, and a job after them and those in the queue."""
        jobs = self._submit(waiting, folder)
        jobs = dict(queued) | jobs
        records.write_json(folder / "jobs.json", jobs)
        arrays = sorted({job.split("_")[0] for job in jobs.values()})
        last = self._submit_after(arrays, waiting[0], folder) if self.cluster == "slurm" else None
        then = f"; job {last} reports when they have ended, and submits what is left then" if last else ""
        print(f"submitted {len(waiting)} runs as job {', '.join(arrays)}{then}", flush=True)
        if last:
            print(f"squeue --me shows them; scancel {' '.join([last, *arrays])} takes all of it back", flush=True)

    def _take_stock(self, runs: Sequence[Run], folder: Path) -> dict[str, str]:
        """Jobs that are in the queue, by run; runs whose job has ended without a word are recorded as failed."""
        jobs: dict[str, str] = records.read_json(folder / "jobs.json") or {}
        live = in_queue() if jobs and self.cluster == "slurm" else set()
        for run in runs:
            job = jobs.get(run.id)
            if job is None or job in live or run.state != "to do":
                continue
            log, script = folder / f"{job}_0_log.out", folder / f"{job.split('_')[0]}_submission.sh"
            ended = (records.read_state(run.directory) or {}).get("ended", 0.0)
            # Without a log it never started: it was cancelled, which is nobody's fault.
            if log.exists() and ended < script.stat().st_mtime:
                bury(run, f"job {job} ended without a word; see log.txt and {log}")
        return {name: job for name, job in jobs.items() if job in live}

    def _submit(self, runs: Sequence[Run], folder: Path) -> dict[str, str]:
        """An array for each shape that the runs' trainers ask for; jobs by run."""
        by_shape: dict[Shape, list[Run]] = {}
        for run in runs:
            by_shape.setdefault(shape_of(run), []).append(run)
        found: dict[str, str] = {}
        with _submitting():
            for shape, group in by_shape.items():
                executor = self._executor(folder, group[0].study, shape)
                with executor.batch():
                    jobs = [executor.submit(Job(run.command, run.directory, self.threads)) for run in group]
                found |= {run.id: job.job_id for run, job in zip(group, jobs, strict=True)}
        return found

    def _submit_after(self, jobs: Sequence[str], run: Run, folder: Path) -> str:
        from submitit.helpers import CommandFunction

        command = CommandFunction([sys.executable, "-m", "ouro_lab", "run", run.study, *run.overrides], cwd=ROOT)
        executor = self._executor(folder, f"{run.study}-report", (1, 1, False))
        executor.update_parameters(slurm_dependency=f"afterany:{':'.join(jobs)}")
        with _submitting():
            return executor.submit(command).job_id

    def _executor(self, folder: Path, name: str, shape: Shape) -> Any:
        from submitit import AutoExecutor

        nodes, ranks, gpus = shape
        executor = AutoExecutor(folder, cluster=self.cluster, slurm_max_num_timeout=self.requeues)
        # A rank that dies takes the others with it, at once and not after a collective's half hour.
        executor.update_parameters(
            name=name, timeout_min=self.minutes, nodes=nodes, tasks_per_node=ranks, cpus_per_task=self.threads,
            mem_gb=self.memory_gb, gpus_per_node=ranks if gpus else None, slurm_partition=self.partition,
            slurm_account=self.account, slurm_qos=self.qos, slurm_array_parallelism=self.parallel,
            slurm_signal_delay_s=self.grace, slurm_setup=list(self.setup) or None,
            slurm_srun_args=["--kill-on-bad-exit=1"], slurm_additional_parameters=dict(self.options) or None,
        )  # fmt: skip
        return executor


@dataclass(frozen=True)
class Job:
    """A rank of one run, as submitit calls it; what it prints goes to the run's log.txt, as everywhere."""

    arguments: Sequence[str]  # of ouro_lab.run
    directory: Path
    threads: int

    def __call__(self) -> int:
        from lightning.pytorch.utilities.exceptions import SIGTERMException

        from ouro_lab import run

        os.chdir(ROOT)
        os.environ["OMP_NUM_THREADS"] = str(self.threads)
        if own_rank() == 0:
            self._print_to_log()
        try:
            return run.main(list(self.arguments))
        except SIGTERMException as end:
            # The checkpoint is written, and submitit's handler is back in its place: on rank 0 it queues the job again
            # and ends it.
            if end.code == REQUEUE:
                signal.raise_signal(signal.SIGUSR2)
            return 0

    def checkpoint(self) -> Any:
        """What submitit runs when the job comes back: the same, which resumes."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _print_to_log(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "log.txt").open("a") as log:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
                os.dup2(log.fileno(), stream.fileno())


def shape_of(run: Run) -> Shape:
    trainer = run.config["trainer"]
    gpus = trainer.get("accelerator", "cpu") in ("gpu", "cuda")
    return int(trainer.get("num_nodes", 1)), int(trainer.get("devices", 1)), gpus


def in_queue() -> set[str]:
    """Ids of this user's jobs that wait or run, of arrays as `12_0`."""
    done = subprocess.run(["squeue", "--me", "-h", "-r", "-o", "%i"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"launcher: squeue fails ({(done.stderr.strip().splitlines() or ['no message'])[0]})")
    return set(done.stdout.split())


@contextmanager
def _submitting() -> Generator[None]:
    """Without what a job tells its own processes, as this may be one; one line where SLURM refuses."""
    from submitit.core.utils import FailedJobError
    from submitit.helpers import clean_env

    site = {name: os.environ[name] for name in SITE if name in os.environ}
    try:
        with clean_env():
            os.environ.update(site)
            yield
    except FailedJobError as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise ConfigError(f"launcher: sbatch refuses ({reason})") from error


def check_installed(cluster: str) -> None:
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise ConfigError("launcher: needs submitit; pip install -e '.[slurm]', or LAUNCHER=local") from None
    if cluster == "slurm" and not all(shutil.which(name) for name in ("sbatch", "srun", "squeue")):
        raise ConfigError("launcher: no sbatch here; must be started where SLURM is, or LAUNCHER=local")
