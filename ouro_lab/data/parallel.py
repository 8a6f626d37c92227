"""One function over many items in several processes, results in the items' order; and how fast that goes."""

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

Item = TypeVar("Item")

_work: list[Callable[[Any], Any]] = []  # of a worker process: what it was started for


def in_order(work: Callable[[Item], Any], items: Iterable[Item], workers: int) -> Iterator[Any]:
    """`map` with so many processes; few items are ahead of the results, so that none need fit in memory.

    Raises: what `work` raises; RuntimeError when a process ended of itself.
    """
    if workers <= 1:
        yield from map(work, items)
        return
    context = get_context("fork")  # `work` is often no function that could be sent to a new Python
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(work,))
    waiting: deque[Future[Any]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(_run, item))
            if len(waiting) > workers + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise RuntimeError(f"workers = {workers}: one ended (memory?); the same command goes on from there") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(work: Callable[[Any], Any]) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork, and processes are what is asked
    _work[:] = [work]
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed ends no worker; one that lived on would hold its lock and write beside its successor."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(item: Any) -> Any:
    return _work[0](item)


class Rate:
    """One line: how much, at what rate, what is left. Redrawn on a terminal, a line now and then elsewhere.

    whole: the amount that will be done, where it is known. unit: of amounts, which are shown in millions.
    """

    def __init__(self, label: str, whole: int | None, unit: str, seconds: float = 10.0) -> None:
        self.label, self.whole, self.unit = label, whole, unit
        self.terminal = sys.stdout.isatty()
        self.interval = 0.5 if self.terminal else seconds
        self.done = self.before = 0
        self.began = self.shown = time.monotonic()

    def skip(self, amount: int) -> None:
        """Done earlier: counts as done, not for the rate."""
        self.before += amount
        self.done += amount
        self.began = self.shown = time.monotonic()

    def add(self, amount: int) -> None:
        self.done += amount
        if time.monotonic() - self.shown >= self.interval:
            self._print("" if self.terminal else "\n")

    def end(self) -> None:
        """Where a line was shown, the last one says that it is done."""
        if self.shown > self.began:
            self._print("\n")

    def _print(self, end: str) -> None:
        self.shown = time.monotonic()
        print(("\r\033[K" if self.terminal else "") + self.line(), end=end, flush=True)

    def line(self) -> str:
        """`sotu: 12.3 of 93.0 MB tokenised, 4.1 MB/s, 20 s left`."""
        rate = (self.done - self.before) / max(time.monotonic() - self.began, 1e-9)
        amount = f"{self.done / 1e6:.1f}" + (f" of {self.whole / 1e6:.1f}" if self.whole else "")
        left = f", {max(0, self.whole - self.done) / rate:.0f} s left" if self.whole and rate else ""
        return f"{self.label}: {amount} M{self.unit} tokenised, {rate / 1e6:.2f} M{self.unit}/s{left}"
