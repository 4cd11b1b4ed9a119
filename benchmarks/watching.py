"""A training command, watched from outside: when each line of its metrics.jsonl appeared, and what it took."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
_LOOKS_A_SECOND = 200


@dataclass(frozen=True)
class Measured:
    """One run; moments are seconds since the command was given."""

    losses: list[float]
    """Of the steps."""
    moments: list[float]
    """Of the ends of the steps."""
    scored: float | None
    """When the dev split was scored; None where it was not."""
    ended: float
    """When the process was gone."""
    processor: list[float]
    """Seconds of processor that all its threads had had at those ends."""
    peak: int
    """Bytes of memory at most: resident, of the largest process; or taken of the GPU, where that is what computes."""

    def seconds(self, steps: Iterable[int]) -> float:
        """Return the time from the end of the step before to the end of each of these steps (1-based), summed."""
        return sum(self.moments[step - 1] - self.moments[step - 2] for step in steps)

    def processor_seconds(self, steps: Iterable[int]) -> float:
        """Return what of the processor these steps took, summed."""
        return sum(self.processor[step - 1] - self.processor[step - 2] for step in steps)


def watch(command: list[str], metrics: Path, environment: dict[str, str], log: Path, gpu: bool = False) -> Measured:
    """Run a command and watch the lines it writes.

    Raises:
        RuntimeError: It failed, or made no step.
    """
    metrics.unlink(missing_ok=True)
    with open(log, "w") as output, _gpu_memory() if gpu else _nothing() as taken:
        started = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        looked = psutil.Process(process.pid)
        seen: list[tuple[float, float]] = []
        size, pid = 0, 0
        while not pid:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            ended = time.monotonic() - started
            if metrics.exists() and metrics.stat().st_size > size:
                size, count = metrics.stat().st_size, metrics.read_text().count("\n")
                times = (usage.ru_utime, usage.ru_stime) if pid else looked.cpu_times()[:2]
                seen += [(ended, sum(times))] * (count - len(seen))
            time.sleep(0 if pid else 1 / _LOOKS_A_SECOND)
        peak = max(taken()) if gpu else usage.ru_maxrss * 1024
    lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    trained = [(line["loss"], *look) for line, look in zip(lines, seen, strict=True) if line["event"] == "train"]
    if status or not trained:
        raise RuntimeError(f"{' '.join(command)} ended with {status}:\n{log.read_text()[-3000:]}")
    losses, moments, processor = map(list, zip(*trained, strict=True))
    scored = [moment for line, (moment, _) in zip(lines, seen, strict=True) if line["event"] == "eval"]
    return Measured(losses, moments, scored[-1] if scored else None, ended, processor, peak)


@contextmanager
def _gpu_memory() -> Iterator[Callable[[], list[int]]]:
    """Yield what returns the bytes in use on each GPU, as read five times a second so far."""
    with tempfile.TemporaryFile("w+") as file:
        ask = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-lms", "200"]
        asking = subprocess.Popen(ask, stdout=file)

        def read() -> list[int]:
            file.seek(0)
            return [int(line) * 2**20 for line in file.read().splitlines()]

        try:
            yield read
        finally:
            asking.terminate()
            asking.wait()


@contextmanager
def _nothing() -> Iterator[Callable[[], list[int]]]:
    yield list
