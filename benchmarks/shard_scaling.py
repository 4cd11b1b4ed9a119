"""What planning from encoded shards costs: `python benchmarks/shard_scaling.py FOLDER [EXAMPLES ...]`.

Makes shards of 100,000 examples in FOLDER, with the numbers that the plan reads (length, tokens, items) and without the
tokens, which it does not: 24 bytes an example. Lengths are log-normal as in plan_scaling.py. Each row is a process of
its own: it reads the index, plans a run with micro-batches of up to 16,384 tokens, grouped by length, and takes the
first step, the step in the middle of the second pass, and the 50 after it, of 512 examples each; the loader's count of
tokens is read too. `all` shuffles all examples, as without shards. Times are CPU time; memory is the process's, less
what it had before the data: what it allocated, and at most at any time with what is mapped from files.
"""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pyarrow as pa
from plan_scaling import recipe

from onecurve.data.checking import Report
from onecurve.data.examples import write_batches
from onecurve.data.plan import plan_run
from onecurve.data.shards import Encoding, Shard, ShardedExamples, ShardIndex
from onecurve.data.splits import Split
from onecurve.tasks.base import Survey

SIZES = (1_000_000, 10_000_000, 100_000_000)
SHARD = 100_000
WINDOWS = (None, 16)
STEPS = 50
HEAD = ("examples", "window", "index", "first step", "seek", "any other step", "allocated", "peak")


def make(folder: Path, examples: int) -> ShardIndex:
    """Return shards of so many examples, made where they are not there yet."""
    if (folder / "shards.json").is_file():
        return ShardIndex.read(folder)
    rng, shards = np.random.default_rng(0), []
    for number in range(examples // SHARD):
        name = f"shard-{number:06d}"
        (folder / name).mkdir(parents=True)
        lengths = np.exp(4.5 + 0.8 * rng.standard_normal(SHARD)).clip(4, 2048).astype(np.int64)
        names = ["num_items", "length", "num_tokens"]
        parts = np.split(lengths, SHARD // 1000)
        write_batches(folder / name, (pa.RecordBatch.from_arrays([pa.array(part)] * 3, names=names) for part in parts))
        shards.append(Shard.of(folder / name, name, SHARD, Report()))
    encoding = Encoding("", {}, [], asdict(Survey()), {"read": {}, "unread": [], "known": []}, "", SHARD)
    index = ShardIndex(folder, encoding, Report(), tuple(shards))
    index.write()
    return index


def memory(name: str) -> int:
    """Return a number of bytes that the kernel says of this process."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def measure(folder: Path, window: int | None) -> tuple[str, ...]:
    """Measure one row, in this process."""
    run = recipe(micro_batch_tokens=16_384, group_by_length=True)
    run = run.model_copy(update={"data": run.data.model_copy(update={"shuffle_window": window})})
    np.argsort(np.random.Philox(key=0).random_raw(10))  # imports what NumPy puts off until it is used
    before, all_before = memory("RssAnon"), memory("VmRSS")
    started = process_time()
    index = ShardIndex.read(folder)
    examples = ShardedExamples(folder, index.shards, 2 * window if window else None)
    split: Any = Split("train", index.report, examples)
    read = process_time() - started
    plan = plan_run([split], run)

    def take(number: int) -> None:
        assert split.num_tokens[plan.step(number).sample_ids].sum() > 0

    def timed(numbers: range) -> float:
        began = process_time()
        for number in numbers:
            take(number)
        return (process_time() - began) / len(numbers)

    middle = plan.steps_per_epoch + plan.steps_per_epoch // 2
    times = timed(range(1, 2)), timed(range(middle, middle + 1)), timed(range(middle + 1, middle + 1 + STEPS))
    allocated, peak = memory("RssAnon") - before, memory("VmHWM") - all_before
    told = [f"{time * 1e3:,.1f} ms" for time in (read, *times)]
    return (
        f"{len(examples):,}",
        str(window or "all"),
        *told,
        *(f"{size / 2**20:,.0f} MiB" for size in (allocated, peak)),
    )


def main(arguments: list[str]) -> None:
    """Print the table."""
    if arguments[0] == "--row":
        print(json.dumps(measure(Path(arguments[1]), json.loads(arguments[2]))))
        return
    rows = [HEAD]
    for examples in map(int, arguments[1:]) if arguments[1:] else SIZES:
        folder = Path(arguments[0]) / str(examples)
        make(folder, examples)
        for window in WINDOWS:
            row = [sys.executable, __file__, "--row", str(folder), json.dumps(window)]
            rows.append(tuple(json.loads(subprocess.run(row, capture_output=True, check=True, text=True).stdout)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))


if __name__ == "__main__":
    main(sys.argv[1:])
