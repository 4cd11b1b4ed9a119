"""What planning costs by the number of examples: `python benchmarks/plan_scaling.py [EXAMPLES ...]`.

Lengths are log-normal (median 90 tokens, cut to 4 and 2,048); the global batch is 512 examples. Micro-batches are cut
by length and hold up to 16,384 tokens, or 8 examples as they come. Times are CPU time of one thread; memory is what
NumPy has asked for.
"""

import sys
import tracemalloc
from collections.abc import Callable
from time import process_time
from types import SimpleNamespace
from typing import Any

import numpy as np

from onecurve.config import Recipe
from onecurve.data import plan as planning

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
FAR = 1_000_000
"""The step that is sought, as if a run were resumed there: the order of its epoch is not known yet."""
REPEATED = 50
HEAD = ("examples", "plan", "seek", "at most", "any other step", "uncut", "scoring", "held")


def recipe(**train: Any) -> Recipe:
    """Return a recipe of so many steps that the one sought exists."""
    values = {"output_dir": "-", "task": {"name": "sft"}, "model": {"path": "-"}, "data": {"train": "-"}}
    return Recipe.model_validate(values | {"train": {"max_steps": 2 * FAR, "global_batch_size": 512} | train})


def milliseconds(work: Callable[[], Any], times: int = 1) -> str:
    """Return the CPU time of one call."""
    started = process_time()
    for _ in range(times):
        work()
    return f"{(process_time() - started) / times * 1e3:.2f} ms"


def mebibytes(num_bytes: int) -> str:
    """Spell bytes."""
    return f"{num_bytes / 2**20:.1f} MiB"


def peak(work: Callable[[], Any]) -> int:
    """Return the most bytes that are held at once while `work` runs, beyond those held before."""
    tracemalloc.start()
    work()
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def row(num_examples: int) -> tuple[str, ...]:
    """Measure one number of examples."""
    lengths = np.exp(4.5 + 0.8 * np.random.default_rng(0).standard_normal(num_examples)).clip(4, 2048).astype(np.int32)
    split: Any = SimpleNamespace(name="train", lengths=lengths, num_items=lengths.copy())
    by_tokens = recipe(micro_batch_tokens=16_384, group_by_length=True)
    plan, uncut = (planning.plan_run([split], one) for one in (by_tokens, recipe()))
    plan.step(1)  # imports what NumPy puts off until it is used

    def seek() -> None:
        planning._shuffled.cache_clear()
        plan.step(FAR)

    most, sought = peak(seek), milliseconds(seek)
    order = planning._shuffled(num_examples, planning.stream_key(0, "order", (FAR - 1) // plan.steps_per_epoch))
    return (
        f"{num_examples:,}",
        milliseconds(lambda: planning.plan_run([split], by_tokens)),
        sought,
        mebibytes(most),
        milliseconds(lambda: plan.step(FAR), REPEATED),
        milliseconds(lambda: uncut.step(FAR), REPEATED),
        milliseconds(lambda: planning.plan_scoring(split, by_tokens)),
        mebibytes(lengths.nbytes + split.num_items.nbytes + order.nbytes),
    )


def main(arguments: list[str]) -> None:
    """Print the table."""
    rows = [HEAD, *map(row, map(int, arguments) if arguments else SIZES)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))


if __name__ == "__main__":
    main(sys.argv[1:])
