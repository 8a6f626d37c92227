"""Ranks of one run as processes forked from the test's: they have imported everything, so they start at once."""

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable

import torch
import torch._dynamo  # FSDP2 asks for it: seconds that each rank would spend anew


def in_ranks(world: int, work: Callable[[], object], seconds: float = 120.0) -> list[int]:
    """Calls `work` in `world` processes that find their ranks as a launcher would tell them; returns exit statuses."""
    context = multiprocessing.get_context("fork")
    port = _free_port()
    processes = [context.Process(target=_rank, args=(rank, world, port, work)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
    for process in processes:
        process.kill()
        process.join()
    return [process.exitcode or 0 for process in processes]


def _rank(rank: int, world: int, port: int, work: Callable[[], object]) -> None:
    # What Lightning's environment reads of processes that it did not start itself.
    os.environ |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "NODE_RANK": "0"}
    torch.set_num_threads(1)
    try:
        work()
    except SystemExit as end:
        os._exit(end.code)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
