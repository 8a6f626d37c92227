"""The SLURM launcher: what it submits (to stand-ins of sbatch and squeue), a requeue by submitit's local executor, and
the whole on a real SLURM where one answers."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests_support import BARE, TINY

from ouro_lab import records
from ouro_lab import run as run_entry
from ouro_lab.config import ROOT, ConfigError
from ouro_lab.launch_slurm import Slurm
from ouro_lab.study import Study

pytest.importorskip("submitit")

ONE = [*TINY, "study.seeds=[0]", "tracking=none", "trainer.precision=32-true", "trainer.compile=false"]
ONE_ARM = [*ONE, *BARE, "+study.arms={one: ['backbone.loops=3']}"]
# A process that is told once, in step 3, that its time is up.
TOLD = """
import os, signal
from pathlib import Path
from ouro_lab.training.callbacks import Recorder

real, flag = Recorder.on_train_batch_end, Path(__file__).with_name("told")

def tell(self, trainer, *rest):
    if trainer.global_step == 3 and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGUSR2)
    real(self, trainer, *rest)

Recorder.on_train_batch_end = tell
"""


class FakeSlurm:
    """sbatch that keeps what it is given, and squeue that says what the test says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tools = folder, folder / "bin"
        self.tools.mkdir(parents=True)
        count = f"n=$(ls {folder}/*.sh 2>/dev/null | wc -l); cp $1 {folder}/$n.sh; echo Submitted batch job $((n + 10))"
        for name, body in {"sbatch": count, "srun": "true", "squeue": f"cat {folder}/queue"}.items():
            (self.tools / name).write_text(f"#!/bin/sh\n{body}\n")
            (self.tools / name).chmod(0o755)
        self.queue()

    def queue(self, *jobs: str) -> None:
        (self.folder / "queue").write_text("\n".join(jobs))

    @property
    def submitted(self) -> list[str]:
        return [path.read_text() for path in sorted(self.folder.glob("*.sh"), key=lambda path: int(path.stem))]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{fake.tools}{os.pathsep}{os.environ['PATH']}")
    return fake


def execute(study: Study, **options) -> bool:
    return Slurm(**options).execute(study.todo, study.expand, lambda active: None)


def flags(script: str) -> dict[str, str]:
    return dict(re.findall(r"#SBATCH --([\w-]+)=(.*)", script))


def test_a_study_is_an_array_and_a_job_after_it(slurm, capsys):
    study = Study("p_hop", [*ONE, "launcher=slurm"])
    options = {"partition": "long", "minutes": 90, "grace": 60, "threads": 3, "memory_gb": 8, "parallel": 2}
    assert not execute(study, **options, setup=["module load cuda"], options={"reservation": "ours"})
    array, after = slurm.submitted
    wanted = {"array": "0-2%2", "time": "90", "signal": "USR2@60", "cpus-per-task": "3", "mem": "8GB", "nodes": "1"}
    assert (
        flags(array).items() >= {**wanted, "partition": "long", "ntasks-per-node": "1", "reservation": "ours"}.items()
    )
    assert "gpus-per-node" not in flags(array)
    assert "module load cuda" in array
    assert "--kill-on-bad-exit=1" in array
    assert flags(after)["dependency"] == "afterany:10"
    jobs = records.read_json(records.runs_root() / "p_hop" / "slurm" / "jobs.json")
    assert sorted(jobs) == sorted(run.id for run in study.expand())
    assert sorted(jobs.values()) == ["10_0", "10_1", "10_2"]
    out = capsys.readouterr().out
    assert "submitted 3 runs as job 10; job 11 reports when they have ended" in out
    assert "scancel 11 10" in out


def test_a_run_on_several_nodes_has_a_task_per_rank(slurm):
    trainer = ["trainer=fsdp", "trainer.devices=4", "trainer.num_nodes=2"]
    execute(Study("p_hop", [*ONE_ARM, *trainer]))
    found = flags(slurm.submitted[0])
    assert (found["nodes"], found["ntasks-per-node"], found["gpus-per-node"]) == ("2", "4", "4")


def test_what_is_in_the_queue_is_not_submitted_twice(slurm, capsys):
    study = Study("p_hop", ONE)
    execute(study)
    slurm.queue("10_0", "10_1", "10_2", "11", "77")
    execute(study)
    assert len(slurm.submitted) == 2
    assert "3 runs are in the queue, and no other waits" in capsys.readouterr().out
    slurm.queue("10_0", "10_2")  # 10_1 was cancelled before it began: nobody's fault
    execute(study)
    assert len(slurm.submitted) == 4
    assert flags(slurm.submitted[3])["dependency"] == "afterany:10:12"
    assert all(records.read_state(run.directory) is None for run in study.expand())


@pytest.mark.parametrize("began", [True, False])
def test_a_job_that_ended_without_a_word_uses_up_an_attempt(began, slurm):
    study = Study("p_hop", ONE_ARM)
    (one,) = study.expand()
    for attempt in (1, 2, 3):
        execute(study)
        job = records.read_json(one.directory.parent / "slurm" / "jobs.json")[one.id]
        (one.directory.parent / "slurm" / f"{job}_0_log.out").touch()
        if began:
            records.begin(one.directory, one.identity(), one.config)
            state = records.read_state(one.directory)
            records.write_json(one.directory / "state.json", state | {"pid": 2**22, "started": "never"})
        before = len(slurm.submitted)
        execute(study)
        assert records.read_state(one.directory)["attempts"] == attempt
        assert f"job {job} ended without a word" in records.read_state(one.directory)["reason"]
        assert (len(slurm.submitted) > before) == (attempt < 3)  # who finds it dead submits it again
    assert one.state == "failed"


def test_what_slurm_says_is_one_line(slurm, monkeypatch):
    (slurm.tools / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\necho more >&2\nexit 1\n"
    )
    with pytest.raises(ConfigError, match=r"^launcher: sbatch refuses \(sbatch: error: invalid partition\)$"):
        execute(Study("p_hop", ONE_ARM))
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigError, match="launcher: no sbatch here"):
        execute(Study("p_hop", ONE_ARM))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"minutes": 0}, "launcher.minutes = 0: must be an integer ≥ 1"),
        ({"minutes": 2, "grace": 120}, "launcher.grace = 120: must be less than"),
        ({"cluster": "slrm"}, "launcher.cluster = slrm: did you mean slurm?"),
    ],
)
def test_bad_options_are_one_line(options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        Slurm(**options)


def test_a_run_whose_time_is_up_comes_back_and_gives_the_same_curve(tmp_path, monkeypatch):
    study = Study("p_hop", ONE_ARM)
    (one,) = study.expand()
    monkeypatch.setenv("OURO_RUNS", str(tmp_path / "unbroken"))
    assert run_entry.execute(one) == 0
    expected = rows(one)
    monkeypatch.setenv("OURO_RUNS", str(tmp_path / "requeued"))
    (tmp_path / "sitecustomize.py").write_text(TOLD)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.chdir(ROOT)
    execute(study, cluster="local")
    wait_for(lambda: one.state == "done")
    log = (one.directory / "log.txt").read_text()
    assert "Requeued job" in log
    assert "resumes at step 3 of 12" in log
    assert rows(one) == expected
    assert records.read_state(one.directory)["attempts"] == 1


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("sinfo") or subprocess.run(["sinfo"], capture_output=True, check=False).returncode != 0,
    reason="no SLURM answers here",
)
@pytest.mark.timeout(900)
def test_on_slurm_an_array_is_requeued_and_reported(tmp_path, monkeypatch):
    """In the repository's file system, so that other nodes see it."""
    folder = Path(tempfile_in(ROOT / "runs"))
    try:
        monkeypatch.setenv("OURO_RUNS", str(folder))
        (tmp_path / "sitecustomize.py").write_text(TOLD)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
        study = [*ONE_ARM, "launcher=slurm", "launcher.threads=1"]
        done = subprocess.run([sys.executable, "-m", "ouro_lab", "run", "p_hop", *study], cwd=ROOT, check=False)
        assert done.returncode == 0
        (one,) = Study("p_hop", study).expand()
        wait_for(lambda: (folder / "p_hop" / "report" / "report.md").exists(), seconds=800)
        assert "resumes at step 3 of 12" in (one.directory / "log.txt").read_text()
        assert one.state == "done"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def tempfile_in(folder: Path) -> str:
    import tempfile

    folder.mkdir(exist_ok=True)
    return tempfile.mkdtemp(dir=folder)


def rows(run) -> list[dict]:
    found = records.read_metrics(run.directory / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k != "time" and not k.startswith("perf/")} for row in found]


def wait_for(condition, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
