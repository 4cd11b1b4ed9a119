"""How the cost of a step grows with its size: `python benchmarks/scaling.py --axes ranks --json scaling.json`.

Along each axis everything else stays as it is: `length` at 2,048 tokens a step, `micro_batch` and `ranks` at 16 blocks
of 128, `checkpoint` over models of 3 to 60 million parameters. Each point is a whole run of train.py, watched from
outside; rounds go through the points forwards and backwards. Prints a Markdown table; `--plot` draws it.
"""

import argparse
import json
import os
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from contenders import Machine
from peers import describe_machine
from tables import WARM_UP_STEPS, count_tokens
from watching import watch
from work import WORKS, Work, prepare_apart

BASE = replace(
    WORKS["pretraining"], name="blocks", global_batch_size=16, micro_batch_size=4, num_steps=9, max_length=128
)


@dataclass(frozen=True)
class Point:
    """One run: a work, and where it runs."""

    axis: str
    at: int
    """On the axis: tokens of an example, examples of a pass, ranks, or hidden size."""
    work: Work
    strategy: str = "single"
    """A file of accelerate_configs/."""
    ranks: int = 1
    save_after: int | None = None

    @property
    def label(self) -> str:
        """As the table names it."""
        return f"{self.strategy} x {self.ranks}" if self.axis == "ranks" else f"{self.at}"

    def run(self, folder: Path, threads: int) -> dict[str, float]:
        """Run it once and return its numbers, `checkpoint_bytes` and `stall_seconds` where it saves."""
        if not folder.exists():
            prepare_apart(self.work, "full", folder)
        own = folder / f"{self.strategy}-{self.ranks}-{self.work.micro_batch_size}"
        command = [sys.executable, "-m", "accelerate.commands.launch"]
        command += ["--config_file", f"accelerate_configs/{self.strategy}.yaml", "--num_processes", str(self.ranks)]
        command = command if self.strategy != "single" else [sys.executable]
        command += ["train.py", str(folder / "recipe.yaml"), "--output_dir", str(own), "--train.resume", "never"]
        command += ["--checkpoint.every", "null"]
        command += ["--train.micro_batch_size", str(self.work.micro_batch_size)]
        command += ["--checkpoint.also", f"[{self.save_after}]"] if self.save_after else []
        environment = os.environ | {"OMP_NUM_THREADS": str(max(1, threads // self.ranks)), "HF_HUB_OFFLINE": "1"}
        found = watch(command, own / "metrics.jsonl", environment, folder / f"{own.name}.log")
        steady = range(WARM_UP_STEPS + 1, (self.save_after or self.work.num_steps) + 1)
        tokens = count_tokens(folder / "train.jsonl", self.work.global_batch_size)
        seconds = found.seconds(steady)
        numbers = {
            "tokens_per_second": sum(tokens[step - 1] for step in steady) / seconds,
            "step_seconds": seconds / len(steady),
            "peak_megabytes": found.peak / 1e6,
        }
        return numbers | (_saved(own) if self.save_after else {})


def _saved(run: Path) -> dict[str, float]:
    events = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    stall = next(event["stall_seconds"] for event in events if event["event"] == "checkpoint")
    files = [path for path in (run / "checkpoints").rglob("*") if path.is_file()]
    return {"checkpoint_megabytes": sum(path.stat().st_size for path in files) / 1e6, "stall_seconds": stall}


def points() -> list[Point]:
    """Return all points, in the order of the table."""
    lengths = [
        Point("length", n, replace(BASE, max_length=n, global_batch_size=2048 // n, micro_batch_size=max(1, 512 // n)))
        for n in (64, 128, 256, 512, 1024)
    ]
    passes = [Point("micro_batch", n, replace(BASE, micro_batch_size=n)) for n in (1, 2, 4, 8, 16)]
    strategies = ("ddp", "zero1", "zero2", "zero3")
    ranks = [Point("ranks", n, BASE, strategy, n) for strategy in strategies for n in (1, 2, 4)]
    ranks = [point for point in ranks if (point.strategy, point.ranks) != ("ddp", 1)]  # which is single
    sizes = [
        Point("checkpoint", h, replace(BASE, model={"hidden_size": h, "intermediate_size": 4 * h}), save_after=6)
        for h in (128, 256, 512, 768)
    ]
    return [*lengths, *passes, Point("ranks", 1, BASE), *ranks, *sizes]


_COLUMNS = {
    "tokens_per_second": "tokens/s",
    "step_seconds": "step, s",
    "peak_megabytes": "peak memory of the largest process, MB",
    "checkpoint_megabytes": "checkpoint, MB",
    "stall_seconds": "training stands still, s",
}
_AXES = {
    "length": "tokens of an example",
    "micro_batch": "examples of a pass",
    "ranks": "strategy x ranks",
    "checkpoint": "hidden size",
}


def markdown(axis: str, rows: dict[str, list[dict[str, float]]]) -> str:
    """Return a Markdown table of one axis: the median of the rounds, and their range."""
    columns = [name for name in _COLUMNS if any(name in runs[0] for runs in rows.values())]
    lines = ["| " + " | ".join([_AXES[axis], *(_COLUMNS[name] for name in columns)]) + " |"]
    lines.append("|---|" + "--:|" * len(columns))
    for label, runs in rows.items():
        cells = []
        for name in columns:
            values = [run[name] for run in runs]
            spread = f" ({min(values):.4g} to {max(values):.4g})" if len(values) > 1 else ""
            cells.append(f"{median(values):.4g}{spread}")
        lines.append("| " + " | ".join([label, *cells]) + " |")
    return "\n".join([*lines, ""])


def plot(found: dict[str, dict[str, list[dict[str, float]]]], path: Path) -> None:
    """Draw each axis: tokens a second, or for checkpoints megabytes and how long training stands still."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    _, panels = pyplot.subplots(1, len(found), figsize=(4.5 * len(found), 3.6), squeeze=False)
    for panel, (axis, rows) in zip(panels[0], found.items(), strict=True):
        over, value = ("checkpoint_megabytes", "stall_seconds") if axis == "checkpoint" else ("", "tokens_per_second")
        lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for label, runs in rows.items():
            name, _, ranks = label.rpartition(" x ")
            x = median(run[over] for run in runs) if over else float(ranks or label)
            lines[name].append((x, median(run[value] for run in runs)))
        for name, places in lines.items():
            panel.plot(*zip(*places, strict=True), marker="o", label=name)
        panel.set(xlabel=_COLUMNS.get(over) or _AXES[axis], ylabel=_COLUMNS[value], ylim=(0, None))
        panel.set_xscale("log", base=2)
        if len(lines) > 1:
            panel.legend()
    pyplot.tight_layout()
    pyplot.savefig(path, dpi=110)


def main() -> None:
    """Run the points of the axes asked for and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--axes", nargs="+", default=list(_AXES), choices=list(_AXES))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of all ranks together")
    parser.add_argument("--json", type=Path, help="where to write every number")
    parser.add_argument("--plot", type=Path, help="an image to draw; needs onecurve[bench]")
    arguments = parser.parse_args()
    wanted = [point for point in points() if point.axis in arguments.axes]
    found: dict[str, dict[str, list[dict[str, float]]]] = {axis: {} for axis in arguments.axes}
    for point in wanted:
        found[point.axis][point.label] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            for point in wanted if number % 2 == 0 else wanted[::-1]:
                work = f"{point.work.max_length}-{point.work.model.get('hidden_size')}"
                numbers = point.run(Path(folder) / work, arguments.threads)
                found[point.axis][point.label].append(numbers)
                print(f"{point.axis} {point.label}: {numbers}", file=sys.stderr, flush=True)
    facts = f"{describe_machine(Machine(arguments.threads))} {arguments.rounds} round(s)."
    print(facts + "\n")
    for axis, rows in found.items():
        print(markdown(axis, rows))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"facts": facts, "axes": found}, indent=1) + "\n")
    if arguments.plot:
        plot(found, arguments.plot)


if __name__ == "__main__":
    main()
