"""How far a study is: bars on a terminal, a line now and then elsewhere; both with rate and time left."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from ouro_lab.launch import progress_of
from ouro_lab.study import Run, Study
from ouro_lab.training.callbacks import clock

LINE_SECONDS = 15.0


class StudyProgress:
    """Work is counted in FLOPs, so that short and long arms weigh what they cost.

    flops: arm → FLOPs of one run.
    """

    def __init__(self, study: Study, flops: Mapping[str, float], console: Console | None = None) -> None:
        self.study, self.flops = study, flops
        self.console = console or Console()
        self.began, self.first = time.monotonic(), self._done([])
        self.shown = float("-inf")
        self.bars: Progress | None = None
        self.tasks: dict[str, TaskID] = {}
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
            self.bars = Progress(*columns, console=self.console)
            self.bars.start()

    def show(self, active: Sequence[Run]) -> None:
        if self.bars is not None:
            self._draw(self.bars, active)
        elif time.monotonic() - self.shown >= LINE_SECONDS:
            self.shown = time.monotonic()
            print(self.line(active), flush=True)

    def end(self) -> None:
        if self.bars is not None:
            self._draw(self.bars, [])
            self.bars.stop()
        else:
            print(self.line([]), flush=True)

    def line(self, active: Sequence[Run]) -> str:
        """`p_hop 4/9 runs finished · looped 0.002 seed 1: 1250/2000 · 5 min 20 s left`."""
        parts = [f"{self.study.name} {self._counts()}"]
        parts += [f"{_name(run)}: {how_far(run, step, steps)}" for run, step, steps in progress_of(active)]
        left = self.seconds_left(active)
        return " · ".join(parts + ([f"{clock(left)} left"] if left is not None and active else []))

    def seconds_left(self, active: Sequence[Run]) -> float | None:
        """At the rate since this call began; None before there is one."""
        done, seconds = self._done(active), time.monotonic() - self.began
        if done <= self.first or seconds < 5:
            return None
        total = sum(self.flops[run.arm] for run in self.study.expand())
        return max(0.0, total - done) * seconds / (done - self.first)

    def _draw(self, bars: Progress, active: Sequence[Run]) -> None:
        total = sum(self.flops[run.arm] for run in self.study.expand())
        left = self.seconds_left(active)
        text = f"{self._counts()}, {clock(left)} left" if left is not None and active else self._counts()
        self._bar(bars, self.study.name, self._done(active), total, text)
        for run, step, steps in progress_of(active):
            self._bar(bars, _name(run), step, max(steps, 1), how_far(run, step, steps))
        for name in set(self.tasks) - {self.study.name} - {_name(run) for run in active}:
            bars.remove_task(self.tasks.pop(name))

    def _bar(self, bars: Progress, name: str, done: float, total: float, text: str) -> None:
        if name not in self.tasks:
            self.tasks[name] = bars.add_task(name, total=total, text=text)
        bars.update(self.tasks[name], completed=done, total=total, text=text)

    def _counts(self) -> str:
        runs = self.study.expand()
        counts = Counter(run.state for run in runs)
        finished = counts["done"] + counts["diverged"] + counts["failed"]
        bad = "".join(f", {counts[state]} {state}" for state in ("diverged", "failed") if counts[state])
        return f"{finished}/{len(runs)} runs finished{bad}"

    def _done(self, active: Sequence[Run]) -> float:
        finished = sum(self.flops[run.arm] for run in self.study.expand() if run.finished)
        return finished + sum(self.flops[run.arm] * step / max(steps, 1) for run, step, steps in progress_of(active))


def how_far(run: Run, step: int, steps: int) -> str:
    """`1250/2000` optimiser steps, or that there are none."""
    return f"{step}/{steps}" if run.config["do"] == "fit" else "evaluation"


def _name(run: Run) -> str:
    return f"{run.arm} {run.lr:g} seed {run.seed}"
