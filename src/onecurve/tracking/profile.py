"""Where a step's time goes: a trace of a few steps from each rank, and one page that sums them up."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.autograd import DeviceType
from torch.profiler import profile, record_function

from onecurve.errors import TrainingError
from onecurve.machine import memory
from onecurve.machine.accelerator import accelerator_of
from onecurve.ranks.heartbeat import last_beat, listen

_WARM_UP = 3
"""Steps before those that are measured: a launch's first ones allocate, compile and choose kernels."""
_OPERATORS_TOLD = 15
_COMMUNICATION = ("gloo:", "nccl:", "ncclDevKernel", "ncclKernel")
"""How the work of a collective is called: on a CPU, as it is handed to a GPU, and on the GPU."""


class Profile:
    """Measures the steps between calls of `after`, which every rank makes after each step; changes nothing of them.

    Args:
        num_steps: How many to measure; 0: none.
        steps_left: Steps that this launch may make: where they are too few, the warm-up is cut before the rest.
        folder: Where to write.
        accelerator: The ranks and the device.
        say: Tells the user where it was written.
    """

    def __init__(
        self, num_steps: int, steps_left: int, folder: Path, accelerator: Accelerator, say: Callable[[str], None]
    ) -> None:
        self.num_steps = min(num_steps, steps_left)
        self.warm_up = min(_WARM_UP, steps_left - self.num_steps)
        self.folder, self.accelerator, self.say = folder, accelerator, say
        self.phases = _Phases()
        self.measured: list[int] = []
        self.profiler: profile | None = None
        self._begin()

    def _begin(self) -> None:
        if self.num_steps and not self.warm_up:
            self.profiler = profile(activities=torch.profiler.supported_activities(), acc_events=True)
            self.profiler.start()
            self.phases.turn(last_beat().phase)
            listen(self.phases.turn)

    def after(self, step: int) -> None:
        """Take in that a step is over, and with it what the loop did since the step before.

        Raises:
            TrainingError: What was measured cannot be written.
        """
        if self.profiler is not None:
            self.measured.append(step)
            if len(self.measured) == self.num_steps:
                self.close()
        else:
            self.warm_up -= 1
            self._begin()

    def close(self) -> None:
        """Write what was measured, also where the run ends before it was as much as was asked for.

        Raises:
            TrainingError: It cannot be written.
        """
        if self.profiler is None:
            return
        listen(None)
        self.phases.end()
        if device := accelerator_of(self.accelerator.device):
            device.synchronize()
        self.profiler.stop()
        rank, steps = self.accelerator.process_index, len(self.measured)
        if steps:
            problem = self._write(rank, steps)
            if problem:
                raise TrainingError(problem)
            self.say(f"profile   of steps {self.measured[0]} to {self.measured[-1]}: {self.folder / 'summary.md'}")
        self.num_steps, self.profiler = 0, None

    def _write(self, rank: int, steps: int) -> str:
        """Write this rank's trace and, on rank 0, the page; return what went wrong, on all ranks alike."""
        assert self.profiler is not None
        problem, spent = "", _Spent()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.profiler.export_chrome_trace(str(self.folder / f"trace-rank-{rank}.json.gz"))
            spent = _spent(self.profiler.events(), self.phases.seconds, self.accelerator.device)
        except OSError as error:
            problem = f"{str(self.folder)!r} cannot be written: {error.strerror}. Set tracking.profile to 0."
        of_ranks = gather_object([(problem, spent)])
        problems = [problem for problem, _ in of_ranks if problem]
        if rank == 0 and not problems:
            page = _page([spent for _, spent in of_ranks], self.measured, self.accelerator.device)
            (self.folder / "summary.md").write_text(page, encoding="utf-8")
        return problems[0] if problems else ""


class _Phases:
    """Seconds by phase, and a range in the trace for each; told of every beat."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.since = 0.0
        self.phase = ""
        self.range: record_function | None = None

    def turn(self, phase: str) -> None:
        """End the phase before, if any, and begin this one."""
        self.end()
        self.phase, self.since = phase, perf_counter()
        self.range = record_function(phase)
        self.range.__enter__()

    def end(self) -> None:
        """End the phase that lasts."""
        if self.range is not None:
            self.range.__exit__(None, None, None)
            self.seconds[self.phase] += perf_counter() - self.since
            self.range = None


@dataclass(frozen=True)
class _Spent:
    """What one rank's measured steps took together, in seconds."""

    phases: dict[str, float] = field(default_factory=dict)
    """By what the loop was doing: the loop's own time, which on a GPU is mostly that of handing work over."""
    on_device: dict[str, float] = field(default_factory=dict)
    """The time on the GPU of what was handed over in each phase; empty on a CPU."""
    other: dict[str, float] = field(default_factory=dict)
    """Collectives, the optimizer, and the time in which nothing was computed: parts of the above."""
    operators: list[tuple[str, int, float]] = field(default_factory=list)
    """(name, calls, seconds in itself), the longest first."""
    peak: int = 0
    """Bytes, since the run began."""


def _spent(events: Any, phases: dict[str, float], device: torch.device) -> _Spent:
    on_gpu, kind = device.type != "cpu", getattr(DeviceType, device.type.upper())
    ranges = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in events
        if event.is_user_annotation and event.device_type == DeviceType.CPU and event.name in phases
    )
    work = [event for event in events if event.device_type == kind]
    talk = [event for event in work if event.name.startswith(_COMMUNICATION)]
    computed = [e for e in work if not e.is_user_annotation and not e.name.startswith(("c10d::", *_COMMUNICATION))]
    update = [event for event in events if event.name.startswith("Optimizer.step#") and event.device_type == kind]
    return _Spent(
        dict(phases),
        _handed_over(events, ranges) if on_gpu else {},
        {
            "communication": _covered(talk),
            "optimizer": _covered(update),
            "idle": max(0.0, sum(phases.values()) - _covered(computed)),
        },
        _operators(events, on_gpu),
        memory.peak(device),
    )


def _covered(events: Iterable[Any]) -> float:
    """Return the seconds in which at least one of these lasts."""
    total, until = 0.0, float("-inf")
    for start, end in sorted((event.time_range.start, event.time_range.end) for event in events):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total / 1e6


def _handed_over(events: Any, ranges: list[tuple[float, float, str]]) -> dict[str, float]:
    """Return the seconds of kernels by the phase in which the loop launched them, from whichever thread."""
    found: dict[str, float] = defaultdict(float)
    launches = sorted((e.time_range.start, sum(k.duration for k in e.kernels)) for e in events if e.kernels)
    place = 0
    for start, duration in launches:
        while place < len(ranges) - 1 and ranges[place][1] < start:
            place += 1
        if ranges and ranges[place][0] <= start <= ranges[place][1]:
            found[ranges[place][2]] += duration / 1e6
    return dict(found)


def _operators(events: Any, on_gpu: bool) -> list[tuple[str, int, float]]:
    totals: dict[str, tuple[int, float]] = {}
    for event in events:
        if event.device_type == DeviceType.CPU and not event.is_user_annotation:
            spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            calls, seconds = totals.get(event.name, (0, 0.0))
            totals[event.name] = calls + 1, seconds + spent / 1e6
    ranked = sorted(((name, *total) for name, total in totals.items()), key=lambda entry: -entry[2])
    return ranked[:_OPERATORS_TOLD]


def _page(ranks: list[_Spent], steps: list[int], device: torch.device) -> str:
    count, accelerator = len(steps), accelerator_of(device)
    longest = sorted(ranks[0].phases, key=lambda phase: -max(r.phases.get(phase, 0.0) for r in ranks))
    rows = [("**step**", [_ms(sum(r.phases.values()), count) for r in ranks])]
    rows += [(phase, [_share(r.phases.get(phase, 0.0), r, count) for r in ranks]) for phase in longest]
    if accelerator:
        rows += [
            (f"GPU: of {phase}", [_ms(r.on_device.get(phase, 0.0), count) for r in ranks])
            for phase in longest
            if any(phase in r.on_device for r in ranks)
        ]
    named = {
        "communication": "collectives, also beside other work",
        "optimizer": "the optimizer's own step",
        "idle": "GPU idle" if accelerator else "outside operators: Python, waiting",
    }
    rows += [(f"*{told}*", [_share(r.other[key], r, count) for r in ranks]) for key, told in named.items()]
    rows.append(("*peak memory so far*", [memory.spelt(r.peak) for r in ranks]))
    computed = [(f"`{name}`", [f"{n / count:g}", _ms(spent, count)]) for name, n, spent in ranks[0].operators]
    device_name = accelerator.name() if accelerator else "CPU"
    return "\n".join(
        [
            "# Where a step's time goes",
            "",
            f"Steps {steps[0]} to {steps[-1]} on {len(ranks)} rank(s), {device_name}, torch {torch.__version__}. "
            "Milliseconds a step, and shares of it. Measuring has its own cost: without it steps are shorter. "
            "What is in italics is contained in the phases above it.",
            "",
            *_table(["", *(f"rank {n}" for n in range(len(ranks)))], rows),
            "",
            f"Where rank 0's {'GPU' if accelerator else 'operators'} spent it, without what they called:",
            "",
            *_table(["operator", "calls a step", "ms a step"], computed),
            "",
            "`trace-rank-N.json.gz` has every operator of rank N: open it in https://ui.perfetto.dev.",
            "",
        ]
    )


def _table(head: list[str], rows: list[tuple[str, list[str]]]) -> list[str]:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *([name, *cells] for name, cells in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _ms(seconds: float, steps: int) -> str:
    return f"{1000 * seconds / steps:.2f}"


def _share(seconds: float, rank: _Spent, steps: int) -> str:
    return f"{_ms(seconds, steps)} ({seconds / max(sum(rank.phases.values()), 1e-9):.0%})"
