"""Time the same work under onecurve and its peers, turn by turn: `python benchmarks/peers.py --cells sft-full`.

Each peer runs in an environment of its own, which `make bench` makes. All are measured alike, from outside: the moment
each line of a metrics.jsonl appears, and the process's memory and time as the kernel counts them. Every round runs
every contender once, in turn and then in reverse; ratios pair runs of the same round, and a contender whose losses are
not ours is void. Prints Markdown.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contenders import CONTENDERS, LEAGUES, OURS, Contender, Machine, run
from tables import Rounds, count_tokens, markdown, row, save_step
from watching import ROOT, Measured
from work import CELLS, WORKS, Work, prepare_apart

Rows = list[dict[str, object]]


@dataclass(frozen=True)
class Cell:
    """A work, what of the model is trained, and who runs it."""

    work: Work
    method: str
    folder: Path
    contenders: list[Contender]
    runs: dict[str, list[Measured]]
    saves: list[int]

    @property
    def title(self) -> str:
        """As tables name it."""
        return f"{self.work.name}, {self.method}"

    def round(
        self, machine: Machine, leagues: tuple[str, ...], keep: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Run every contender of some leagues once, the other way round each time; return each league's seconds.

        Args:
            machine: Where.
            leagues: Whose.
            keep: Called after each run.
        """
        number, save = len(self.saves), save_step(len(self.saves), self.work.num_steps)
        able, seconds = [c for c in self.contenders if c.league in leagues], dict.fromkeys(leagues, 0.0)
        for contender in able if number % 2 == 0 else able[::-1]:
            found = run(contender, self.folder, save, machine)
            seconds[contender.league] += found.ended
            self.runs[contender.label].append(found)
            keep()
            rate = f"{found.moments[-1]:.1f} s to the last loss, {found.processor[-1]:.1f} s of processor"
            print(f"round {number + 1}  {self.title}  {contender.label}: {rate}", file=sys.stderr, flush=True)
        self.saves.append(save)
        return seconds

    def rows(self) -> Rows:
        """Return a row for each contender."""
        tokens = count_tokens(self.folder / "train.jsonl", self.work.global_batch_size)
        rounds = [Rounds(label, runs, self.saves) for label, runs in self.runs.items()]
        return [row(each, rounds[0], tokens, self.work.precision) for each in rounds]


def prepare_cell(work: Work, method: str, folder: Path, contenders: list[Contender]) -> Cell:
    """Write a work and return it with nothing run yet."""
    folder = folder / f"{work.name}-{method}"
    prepare_apart(work, method, folder)
    able = [contender for contender in contenders if work.task in contender.tasks]
    return Cell(work, method, folder, able, {contender.label: [] for contender in able}, [])


def chosen(names: list[str]) -> list[Contender]:
    """Return the contenders of these names or labels, ours first."""
    wanted = [c for c in CONTENDERS if c != OURS and (c.name in names or c.label in names)]
    return [OURS, *wanted]


def describe_machine(machine: Machine) -> str:
    """Return what the numbers were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return (
        f"{time.strftime('%Y-%m-%d')}: {os.cpu_count()} cores of {processor}, {memory:.0f} GiB, {machine.threads} "
        f"thread(s) a process; Python {platform.python_version()}; load average at the end {load}."
    )


def describe_versions(contenders: list[Contender], machine: Machine) -> str:
    """Return a line for each environment: what of a few packages lies in it."""
    code = (
        "from importlib.metadata import distributions as d; "
        "n = {x.name.lower(): x.version for x in d()}; "
        "print(', '.join(f'{k} {n[k]}' for k in "
        "('torch', 'transformers', 'accelerate', 'peft', 'trl', 'llamafactory', 'liger-kernel') if k in n))"
    )
    pythons = {c.name: machine.interpreter or c.interpreter for c in (OURS, *contenders)}
    found = {
        name: subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        for name, python in pythons.items()
    }
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    found["onecurve"] += f" (commit {commit.stdout.strip() or 'unknown'})"
    return "".join(f"- {name}: {versions}\n" for name, versions in found.items())


def measure(cells: list[Cell], machine: Machine, rounds: int, minutes: float, path: Path | None = None) -> None:
    """Run rounds of all cells, as many as wanted or as there is time for; a last one may leave the defaults out.

    A JSON file, if one is named, has every run as soon as it has ended: one that is cut short loses nothing.
    """
    started, longest = time.monotonic(), dict.fromkeys(LEAGUES, 0.0)
    for _ in range(rounds):
        left = 60 * minutes - (time.monotonic() - started)
        fitting = [leagues for leagues in (LEAGUES, LEAGUES[:1]) if sum(longest[one] for one in leagues) <= left]
        if not fitting:
            break
        taken = [cell.round(machine, fitting[0], lambda: _keep(cells, path)) for cell in cells]
        longest |= {one: max(longest[one], sum(seconds[one] for seconds in taken)) for one in fitting[0]}


def _keep(cells: list[Cell], path: Path | None) -> dict[str, dict[str, list[dict[str, Any]]]]:
    runs = {c.title: {name: [asdict(run) for run in runs] for name, runs in c.runs.items()} for c in cells}
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"runs": runs}) + "\n")
    return runs


def report(
    cells: list[Cell], machine: Machine, path: Path | None, remark: Callable[[Cell, Rows], str] = lambda *_: ""
) -> None:
    """Print the machine, the versions and a table for each cell; write every number to a JSON file, if one is named.

    Args:
        cells: As measured.
        machine: Where.
        path: Of the JSON file.
        remark: What else there is to say of a cell, given its rows.
    """
    everybody = list(dict.fromkeys(contender for cell in cells for contender in cell.contenders))
    runs = _keep(cells, path)
    rows = {cell.title: cell.rows() for cell in cells}
    facts = f"{describe_machine(machine)} {len(cells[0].saves)} rounds.\n\n{describe_versions(everybody, machine)}"
    print(facts)
    for cell in cells:
        print(markdown(cell.title, rows[cell.title]))
        print(remark(cell, rows[cell.title]))
    if path:
        path.write_text(json.dumps({"facts": facts, "rows": rows, "runs": runs}, indent=1) + "\n")


def arguments_parser(description: str, cells: list[str], without: str, minutes: float) -> argparse.ArgumentParser:
    """Return what reads the command line, where one contender only runs when asked for."""
    everybody = list(dict.fromkeys(c.name for c in CONTENDERS if c.name != without))
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--cells", nargs="+", default=cells, choices=cells)
    parser.add_argument("--contenders", nargs="*", default=everybody, help='such as hf_trainer or "trl_sft best"')
    parser.add_argument("--rounds", type=int, default=5, help="at most")
    parser.add_argument("--minutes", type=float, default=minutes, help="no round begins that would end after this")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="where to write every number")
    return parser


def main() -> None:
    """Run rounds while there is time, then print a table for each work."""
    assert __doc__
    names = [f"{work}-{method}" for work, method in CELLS]
    arguments = arguments_parser(__doc__, names, without="plain_loop", minutes=18).parse_args()
    machine = Machine(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        cells = [
            prepare_cell(WORKS[work], method, Path(folder), chosen(arguments.contenders))
            for work, _, method in (name.partition("-") for name in arguments.cells)
        ]
        measure(cells, machine, arguments.rounds, arguments.minutes, arguments.json)
        report(cells, machine, arguments.json)


if __name__ == "__main__":
    main()
