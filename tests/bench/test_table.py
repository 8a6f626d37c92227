"""What the table says, and what the command does with it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from ouro_lab.bench import __main__ as command
from ouro_lab.bench import cases
from ouro_lab.bench.cases import against_eager
from ouro_lab.bench.packing import tokenise_and_pack
from ouro_lab.bench.step import Spec
from ouro_lab.bench.table import Row, Skipped, formatted, missed
from ouro_lab.bench.timing import Effort, interleave, ratio
from ouro_lab.training import execution

TINY = Spec(1, 2, 16, 2, vocab_size=19, batch=2, length=7, stage_one=True, dtype="float32")


def made(ratio: float, target: float | None, at_most: bool) -> Row:
    return Row("case", "what", ratio, target, at_most, 0.5, 1.5, "s")


@pytest.mark.parametrize(
    ("ratio", "target", "at_most", "met"),
    [
        (1.6, 1.5, False, True),
        (1.4, 1.5, False, False),
        (0.2, 0.3, True, True),
        (0.4, 0.3, True, False),
        (9, None, True, None),
    ],
)
def test_a_target_is_a_floor_or_a_ceiling(ratio: float, target: float | None, at_most: bool, met: bool | None) -> None:
    assert made(ratio, target, at_most).met is met


def test_the_table_marks_what_missed_its_target_and_says_why_a_case_was_skipped() -> None:
    lines = [made(1.4, 1.5, at_most=False), made(1.6, 1.5, at_most=False), Skipped("other", "no compiler")]
    header, late, met, skipped = formatted(lines).splitlines()
    assert "MISSED" in late and "≥ 1.50" in late and "500.0 ms" in late and "1.50 s" in late
    assert "MISSED" not in met and "yes" in met
    assert "skipped" in skipped and "no compiler" in skipped
    assert header.startswith("case") and missed(lines) == ["case"]


def test_sides_take_turns_and_the_ratio_is_of_neighbours() -> None:
    order: list[str] = []
    sides = {name: lambda name=name: order.append(name) for name in "ab"}
    interleave(sides, Effort(rounds=3, warm=0))
    assert order[-6:] == ["a", "b", "b", "a", "a", "b"]
    assert ratio({"a": [2.0, 20.0, 6.0], "b": [1.0, 4.0, 2.0]}, "a", "b") == 3.0


def test_an_unknown_case_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["p_hopp"]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "p_hopp" in err and "large_vocabulary" in err and not out


def test_a_case_runs_from_end_to_end_and_writes_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tiny(effort: Effort):
        yield against_eager("tiny", TINY, effort, target=1e9)
        yield Skipped("other", "not here")

    monkeypatch.setattr(execution, "compiler_works", lambda: False)
    monkeypatch.setitem(cases.CASES, "tiny", tiny)
    assert command.main(["tiny", "--quick", "--json", str(tmp_path / "bench" / "table.json")]) == 0
    found = json.loads((tmp_path / "bench" / "table.json").read_text())
    row, skipped = found["rows"]
    assert row["case"] == "tiny" and row["met"] is False and row["ratio"] > 0
    assert len(row["samples"]["ours"]) == len(row["samples"]["rival"]) == found["rounds"]
    assert skipped == {"case": "other", "skipped": "not here"}
    assert found["threads"] == 1 and found["machine"]["copy"] > 0 and found["compiled"] is False
    printed = capsys.readouterr().out
    assert "missed: tiny" in printed and "threads 1" in printed


def test_packing_is_set_against_the_tokenizer_alone() -> None:
    texts = [f"Message {index}: the state of the union is strong." for index in range(40)]
    row = tokenise_and_pack(Effort(rounds=1, warm=0), texts)
    assert row.ratio > 0 and row.unit == "B/s" and not row.at_most


def test_every_side_is_called_until_its_own_time_is_measurable(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], {"cheap": 0, "dear": 0}
    monkeypatch.setattr("ouro_lab.bench.timing.LEAST_SECONDS", 0.25)
    monkeypatch.setattr("ouro_lab.bench.timing.time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def side(name: str, takes: float) -> None:
        calls[name] += 1
        clock[0] += takes

    sides = {"cheap": lambda: side("cheap", 0.125), "dear": lambda: side("dear", 1.0)}
    samples = interleave(sides, Effort(rounds=3, warm=0))
    assert calls == {"cheap": 1 + 3 * 2, "dear": 1 + 3 * 1}
    assert samples == {"cheap": [0.125] * 3, "dear": [1.0] * 3}
