"""Worker processes that decode, transform and collate ahead of the model; forked before a GPU is in use."""

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from threading import Lock
from typing import Any

import numpy as np

from onecurve.data.collation import Collation, Wanted
from onecurve.data.workers import begin
from onecurve.errors import TrainingError
from onecurve.machine.cores import num_cores, ranks_here
from onecurve.tasks.base import Batch, Task, Transforms

_AUTO_AT_MOST = 8
_collations: Mapping[str, Collation]
"""In a worker, what makes batches of each split."""


def num_workers(asked: int | str, task: Task) -> int:
    """Return how many workers a rank has: `data.workers`; auto: its share of the cores less one, on a GPU alone."""
    works = isinstance(task, Transforms) or task.augmentation
    if asked != "auto" or not works:
        return int(asked) if isinstance(asked, int) and works else 0
    from onecurve.machine.accelerator import own_accelerator

    return 0 if own_accelerator() is None else max(1, min(_AUTO_AT_MOST, num_cores() // ranks_here() - 1))


class CollationWorkers:
    """A pool of processes, and the batches that it has been asked for and has not yet given."""

    def __init__(self, count: int, collations: Mapping[str, Collation]) -> None:
        """Start them. What is loaded now is there in each of them: nothing is sent but numbers and batches."""
        self.count = count
        self._waiting: dict[tuple[str, Wanted], Future[dict[str, np.ndarray]]] = {}
        self._lock = Lock()
        self._pool = ProcessPoolExecutor(count, get_context("fork"), _begin, (collations, os.getpid()))
        self._pool.submit(int).result()  # the first task forks them all

    def expect(self, split: str, following: Iterable[Wanted]) -> None:
        """Begin with batches that will probably be asked for next; those that were expected before are given up.

        Raises:
            TrainingError: A worker was killed.
        """
        keys = [(split, wanted) for wanted in following]
        with self._lock, self._alive():
            for key in [key for key in self._waiting if key[0] == split and key not in keys]:
                self._waiting.pop(key).cancel()
            for key in keys:
                if key not in self._waiting:
                    self._waiting[key] = self._pool.submit(_make, *key)

    def get(self, split: str, wanted: Wanted) -> Batch:
        """Return a batch. What its making raised is raised here.

        Raises:
            TrainingError: A worker was killed.
        """
        import torch

        with self._lock:
            future = self._waiting.pop((split, wanted), None)
        with self._alive():
            made = (future or self._pool.submit(_make, split, wanted)).result()
        return {name: torch.from_numpy(array) for name, array in made.items()}

    @contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except BrokenProcessPool:
            raise TrainingError(
                f"one of {self.count} processes that prepare the data was killed, probably because memory ran out. "
                "Give the run more memory, or lower data.workers."
            ) from None


def _begin(collations: Mapping[str, Collation], parent: int) -> None:
    import torch

    global _collations
    _collations = collations
    torch.set_num_threads(1)  # a fork has none of its parent's threads, and would wait for them
    begin(parent)


def _make(split: str, wanted: Wanted) -> dict[str, Any]:
    # As arrays: tensors would go through shared memory, of which containers have little
    return {name: tensor.numpy() for name, tensor in _collations[split](wanted).items()}
