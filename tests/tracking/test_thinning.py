"""A long run is thinned to a fixed number of points, the same in pieces as at once."""

from pathlib import Path
from typing import Any

import pytest

from ouro_lab.tracked import POINTS, thin
from ouro_lab.tracking import Store, push
from tests.tracking.fake_run import FakeRun, query


def rows_of(steps: int, every: int) -> list[dict[str, Any]]:
    return [{"step": step, "time": float(step), "train/loss": 1.0} for step in range(every, steps + 1, every)]


@pytest.mark.parametrize(("steps", "every"), [(100, 1), (1999, 1), (2000, 1), (7919, 1), (100_000, 25), (999_983, 7)])
def test_thinning_keeps_both_ends_and_at_most_the_limit(steps: int, every: int) -> None:
    rows = rows_of(steps, every)
    kept = [point.step for point in thin(rows, steps, -1, True)]
    assert len(kept) <= POINTS
    assert (min(kept), max(kept)) == (rows[0]["step"], rows[-1]["step"])
    assert len(set(kept)) == len(kept)
    assert len(kept) == len(rows) or len(kept) > POINTS / 2 - 2


@pytest.mark.parametrize("piece", [1, 97, 1500])
def test_thinning_in_pieces_is_thinning_at_once(piece: int) -> None:
    rows = rows_of(9000, 1)
    sent, after = [], -1
    for end in range(piece, len(rows), piece):
        sent += thin(rows[:end], 9000, after, False)
        after = rows[end - 1]["step"]
        if piece == 1 and end > 300:
            break
    sent += thin(rows, 9000, after, True)
    assert sorted(point.step for point in sent) == sorted(point.step for point in thin(rows, 9000, -1, True))


def test_a_long_run_is_thinned_in_the_store(tmp_path: Path, store: Store) -> None:
    run = FakeRun(tmp_path / "runs", steps=6000, every=3000)
    lines = [f'{{"step": {step}, "time": {1e9 + step}, "train/loss": {1 / step}}}\n' for step in range(1, 6001)]
    run.log.path.write_text("".join(lines))
    run.end()
    assert push(run.directory, store)
    found = query(store, "select count(*), min(step), max(step) from metrics where key = 'train/loss'")
    assert found == [(1501, 1, 6000)]  # every fourth step is the finest stride that stays under the limit
