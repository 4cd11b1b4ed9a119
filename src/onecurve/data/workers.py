"""Forked worker processes that work on the parts of a split in parallel; results in order."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import get_context
from typing import Any, TypeVar

from onecurve.errors import LaunchError
from onecurve.machine.cores import num_cores
from onecurve.ranks.launcher import end_with_parent

Part = TypeVar("Part")
Result = TypeVar("Result")

_AHEAD = 3
"""Parts a process that are under way or wait to be read: no more is held in memory."""
_work: Callable[[Any], Any]
"""In a worker, what it does with a part."""


def in_order(work: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[Result]:
    """Yield `work` of each part in order, computed on all cores; in this process where there is one part or one core.

    Args:
        work: Need not be picklable, and must not depend on what it did before.
        parts: Picklable.

    Raises:
        LaunchError: A worker was killed. What `work` raises is raised here, in its part's turn.
    """
    parts = iter(parts)
    first = list(islice(parts, 2))
    if len(first) < 2 or num_cores() < 2:
        yield from map(work, chain(first, parts))
    else:
        yield from _side_by_side(work, chain(first, parts), num_cores())


def _side_by_side(work: Callable[[Part], Result], parts: Iterable[Part], num_workers: int) -> Iterator[Result]:
    # Forks have the tokenizer; a process started anew would spend seconds on importing what loads it
    pool = ProcessPoolExecutor(num_workers, get_context("fork"), _begin, (work, os.getpid()))
    waiting: deque[Future[Result]] = deque()
    try:
        for part in parts:
            waiting.append(pool.submit(_do, part))
            if len(waiting) >= _AHEAD * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise LaunchError(
            f"one of {num_workers} processes that encode the data was killed, probably because memory ran out.",
            fix="Give the run more memory, or fewer cores (taskset): there is one encoding process per core.",
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(work: Callable[[Any], Any], parent: int) -> None:
    global _work
    _work = work
    begin(parent)


def begin(parent: int) -> None:
    """Make a forked process a worker, which ends with its parent and leaves signals to it.

    Args:
        parent: Its process id.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a fork has none of its parent's threads, and would wait for them
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_DFL)  # they are this run's to answer, not a worker's
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:  # it died before that
        os._exit(1)


def _do(part: Any) -> Any:
    return _work(part)
