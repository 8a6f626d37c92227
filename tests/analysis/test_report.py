import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_study import Fake, write_sweep

from analysis import curves, figures, report, runs, tables
from analysis.samples import shown_runs
from analysis.style import Palette
from analysis.verdict import judge

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def written(result: runs.StudyResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.write(result, tmp_path_factory.mktemp("report"), ("svg",))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> runs.StudyResult:
    root = tmp_path_factory.mktemp("sweep")
    folder = write_sweep(root)
    study = json.loads((folder / "study.json").read_text())
    few_figures(study)
    (folder / "study.json").write_text(json.dumps(study))
    return runs.load("p_hop_lr", root)


def test_report_starts_with_the_verdict_and_has_all_parts_in_order(written: Path) -> None:
    text = (written.parent / "report.md").read_text()
    lines = text.splitlines()
    assert lines[0].startswith("# Does looping")
    assert lines[2].startswith("> **looped − iso_parameter at accuracy/hops_8: +0.5")
    found = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    parts = ["Arms", "Contrasts", "Match and cost", "Accuracy by difficulty", "By loop", "Floors", "Curves", "Runs"]
    assert found == [*parts, "How to reproduce"]
    assert "make experiment NAME=p_hop" in text
    assert "c0ffee0123456789" in text
    assert "Stale (not what the study yields today, and in no number here): looped-0.004-0" in text


def test_page_needs_nothing_from_outside(written: Path) -> None:
    text = written.read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:)|url\((?!data:)|<script|<link|@import", text)
    assert "prefers-color-scheme: dark" in text
    assert text.count("<img") == len(list((written.parent / "figures").glob("*.svg")))
    assert all(base64.b64decode(data) for data in re.findall(r"base64,([^\"]+)", text))


def test_page_lets_the_reader_choose_the_axis_without_script(written: Path) -> None:
    text = written.read_text()
    assert re.search(r'<input type="radio" name="x\d+" id="x\d+-0" checked><label for="x\d+-0">steps</label>', text)
    for place in range(4):
        assert f'.choice input[id$="-{place}"]:checked ~ img.o{place} {{ display: block }}' in text


def test_markdown_links_resolve(written: Path) -> None:
    links = re.findall(r"\]\((figures/[^)]+)\)", (written.parent / "report.md").read_text())
    assert len(links) == 11
    assert all((written.parent / link).is_file() for link in links)


def test_verdict_json_is_written(written: Path) -> None:
    content = json.loads((written.parent / "verdict.json").read_text())
    assert content["contrasts"][content["primary"]]["word"] == "supported"


def test_evidence_makes_the_same_report_byte_for_byte(result: runs.StudyResult, written: Path, tmp_path: Path) -> None:
    runs.export(result, tmp_path / "p_hop")
    again = report.write(runs.load("p_hop", tmp_path / "nothing", tmp_path), tmp_path / "report", ("svg",))
    files = sorted(path.relative_to(written.parent) for path in written.parent.rglob("*.*") if path.is_file())
    assert len(files) == 14
    for file in files:
        assert (again.parent / file).read_bytes() == (written.parent / file).read_bytes(), file


def test_old_figures_are_removed(make, tmp_path: Path) -> None:
    (tmp_path / "report" / "figures").mkdir(parents=True)
    (tmp_path / "report" / "figures" / "old.svg").write_text("")
    report.write(make(Fake(states=dict.fromkeys(_all(), "to do"))), tmp_path / "report", ("svg",))
    assert list((tmp_path / "report" / "figures").iterdir()) == []


def test_no_finished_run_makes_a_report(make, tmp_path: Path) -> None:
    result = make(Fake(states=dict.fromkeys(_all(), "to do")))
    text = report.write(result, tmp_path / "report", ("svg",)).with_suffix(".md").read_text()
    assert "no verdict, incomplete: 0 of 3 seeds" in text
    assert "Runs: 9 to do." in text


def test_failures_make_a_report_that_names_them(make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = {("looped", 0): "failed", ("iso_parameter", 1): "diverged", ("iso_flop", 2): "running"}
    result = make(Fake(states=states, change=few_figures))
    text = report.write(result, tmp_path / "report", ("svg",)).with_suffix(".md").read_text()
    assert "| failed | 300 | – | OSError: disk full |" in text
    assert "0.445, diverged, 0.402" in text
    report.print_summary(result)
    shown = capsys.readouterr().out
    assert "primary: looped − iso_parameter at accuracy/hops_8: no verdict, incomplete: 2 of 3 seeds" in shown
    assert "Runs: 6 done, 1 diverged, 1 failed, 1 running." in shown


def test_one_seed_makes_a_report(make, tmp_path: Path) -> None:
    result = make(Fake(seeds=(0,), change=few_figures))
    text = report.write(result, tmp_path / "report", ("svg",)).with_suffix(".md").read_text()
    assert "inconclusive (n = 1)" in text


def test_a_sweep_makes_a_report_without_contrasts(sweep: runs.StudyResult, tmp_path: Path) -> None:
    text = report.write(sweep, tmp_path, ("svg",)).with_suffix(".md").read_text()
    assert "> **Chosen learning rates by final val/loss: looped 0.004, iso_parameter 0.004, iso_flop 0.004.**" in text
    assert "| looped | 0.008 | 0.1315, diverged | – |  |" in text
    assert "## Contrasts" not in text
    assert (tmp_path / "figures" / "rates.svg").is_file()


def test_sweep_fit_reports_the_regret(sweep: runs.StudyResult) -> None:
    rows = {row[0]: row for row in tables.sweep_fits(sweep).rows}
    assert rows["iso_flop"][:4] == ["iso_flop", "0.004", "inside the grid", "0.003"]
    assert float(rows["iso_flop"][4]) == pytest.approx(0.05 * np.log2(4 / 3) ** 2, abs=5e-4)


def test_sweep_summary_prints_the_rates(sweep: runs.StudyResult, capsys: pytest.CaptureFixture[str]) -> None:
    report.print_summary(sweep)
    assert "Chosen learning rates by final val/loss" in capsys.readouterr().out


def test_five_seeds_add_success_and_time_to_threshold(make) -> None:
    result = make(Fake(seeds=(0, 1, 2, 3, 4)))
    table, note = tables.success(result, next(iter(judge(result).values())))
    rows = {row[0]: row for row in table.rows}
    assert rows["looped"][2:4] == ["5 of 5", "[0.57, 1.00]"]
    assert rows["iso_parameter"][2] == "0 of 5"
    assert rows["iso_parameter"][5].startswith("1,500")
    assert re.search(r"Log-rank test of looped against iso_parameter: p = 0.0\d+", note)


def test_three_seeds_have_no_success_table(result: runs.StudyResult) -> None:
    assert tables.success(result, None) is None


def test_figures_show_every_seed_and_the_floor(result: runs.StudyResult) -> None:
    axes = curves.curves(result, "val/accuracy/hops_8").axes[0]
    thin = [line for line in axes.lines if line.get_linewidth() < 1]
    labels = [line.get_label() for line in axes.lines if not line.get_label().startswith("_")]
    assert len(thin) == 9
    assert labels == ["looped (2⊗3), n = 3", "iso parameter (2⊗1), n = 3", "iso flop (6⊗1), n = 3", "floor 0.27"]
    colours = {line.get_color() for line in thin}
    assert colours == {Palette(result.study["arms"]).colour(arm) for arm in result.study["arms"]}


@pytest.mark.parametrize(
    ("x", "end"), [("steps", 1500), ("tokens", 4_608_000), ("flops", 8.80128e12), ("seconds", 880.1)]
)
def test_axes_are_in_their_units(result: runs.StudyResult, x: str, end: float) -> None:
    axes = curves.curves(result, "val/loss", x).axes[0]
    assert axes.lines[0].get_xdata()[-1] == pytest.approx(end, rel=1e-3)
    assert axes.get_xlabel() == {**curves.AXES, "flops": "Training compute (TFLOP)"}[x]


def test_a_diverged_run_ends_in_a_cross_and_leaves_the_mean(make) -> None:
    result = make(Fake(states={("looped", 1): "diverged"}))
    axes = curves.curves(result, "train/loss").axes[0]
    cross = [line for line in axes.lines if line.get_marker() == "x"]
    assert [line.get_xdata()[0] for line in cross] == [400]
    assert "looped (2⊗3), n = 2" in [line.get_label() for line in axes.lines]


def test_forest_shows_intervals_and_leaves_out_what_is_refused(make, result: runs.StudyResult) -> None:
    verdicts = judge(result)
    axes = figures.contrasts(verdicts).axes[0]
    spans = [tuple(line.get_xdata()) for line in axes.lines]
    assert verdicts["depth_by_reuse"].interval in spans
    assert figures.contrasts(judge(make(Fake(states={("looped", 0): "failed"})))) is None


def test_levels_and_loops_have_a_point_per_seed(result: runs.StudyResult) -> None:
    levels = figures.difficulty(result, "accuracy/hops_").axes[0]
    assert [text.get_text() for text in levels.get_xticklabels()] == [str(k) for k in range(1, 9)]
    assert sum(line.get_linestyle() == "None" for line in levels.lines) == 9
    loops = figures.loops(result, "accuracy_loop{t}/hops_8").axes[0]
    assert [text.get_text() for text in loops.get_xticklabels()] == ["1", "2", "3"]


def test_sweep_figure_marks_the_chosen_rate_and_the_divergence(sweep: runs.StudyResult) -> None:
    axes = figures.rates(sweep).axes[0]
    rings = [float(line.get_xdata()[0]) for line in axes.lines if line.get_fillstyle() == "none"]
    crosses = [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert rings == [0.004] * 3
    assert crosses == [[0.008]]
    assert set(shown_runs(sweep)["lr"]) == {0.004}


def test_figures_come_in_every_format_without_dates(result: runs.StudyResult, tmp_path: Path) -> None:
    import matplotlib as mpl

    from analysis.style import FORMATS, RC, save

    for folder in ("one", "two"):
        with mpl.rc_context(RC):
            save(figures.contrasts(judge(result)), tmp_path / folder, "contrasts", FORMATS)
    for kind in ("svg", "pdf", "png"):
        one, two = (tmp_path / folder / f"contrasts.{kind}" for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_command_rebuilds_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OURO_RUNS", str(tmp_path))
    Fake(seeds=(0,), change=few_figures).write(tmp_path)
    assert report.main(["p_hop"]) == 0
    shown = capsys.readouterr().out
    assert f"report: {tmp_path / 'p_hop' / 'report' / 'report.html'}" in shown
    assert "inconclusive (n = 1)" in shown
    assert len(list((tmp_path / "p_hop" / "report" / "figures").glob("difficulty.*"))) == 0
    assert len(list((tmp_path / "p_hop" / "report" / "figures").glob("contrasts.*"))) == 3


def test_command_without_a_study_shows_its_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([]) == 2
    assert capsys.readouterr().err == "usage: python -m analysis.report NAME\n"


def test_command_names_the_nearest_study_in_one_line_and_loads_no_training_code(study_root: Path) -> None:
    environment = {**os.environ, "OURO_RUNS": str(study_root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-X", "importtime", "-m", "analysis.report", "p_hoq"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    imports = [line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert (done.returncode, done.stdout, len(said)) == (2, "", 1)
    assert said[0].startswith("error: study p_hoq: ")
    assert "nearest: p_hop" in said[0]
    assert not {name.split(".")[0] for name in imports} & {"torch", "lightning", "hydra", "omegaconf", "mlflow"}


def few_figures(study: dict[str, Any]) -> None:
    """Keeps tests of the text quick."""
    study["figures"] = {"curve": ["none"]}


def _all() -> list[tuple[str, int]]:
    return [(arm, seed) for arm in ("looped", "iso_parameter", "iso_flop") for seed in range(3)]
