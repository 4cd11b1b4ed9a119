"""Time the same work under onecurve and its peers, turn by turn: `python benchmarks/peers.py --works sft`.

Each peer runs in an environment of its own, which `make bench` makes. All are measured alike, from outside: a line a
step in a metrics.jsonl, the moment it appears, and the process's peak memory as the kernel counts it. Ratios pair runs
of the same round; losses are compared before any of it counts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from work import WORKS, prepare

ROOT = Path(__file__).resolve().parent.parent
WARM_UP_STEPS = 4
_LOOKS_A_SECOND = 500


@dataclass(frozen=True)
class Contender:
    """Who runs, and which of its settings."""

    name: str
    league: str
    tasks: tuple[str, ...] = ("text_classification", "sft", "causal_lm")

    @property
    def label(self) -> str:
        """As the table names it."""
        return f"{self.name} {self.league}"


PEERS = (
    Contender("hf_trainer", "best"),
    Contender("hf_trainer", "defaults"),
    Contender("trl_sft", "best", ("sft", "causal_lm")),
    Contender("trl_sft", "defaults", ("sft", "causal_lm")),
)


@dataclass(frozen=True)
class Measured:
    """One run."""

    losses: list[float]
    first_step: float
    """Seconds from the command to the end of step 1."""
    steady: float
    """Seconds of the steps after the warm-up."""
    peak: float
    """Bytes of memory, resident."""


def run(command: list[str], metrics: Path, environment: dict[str, str], log: Path) -> Measured:
    """Run a command and watch the steps it writes."""
    metrics.unlink(missing_ok=True)
    started = time.monotonic()
    with open(log, "w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        moments: list[float] = []
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            count = metrics.read_text().count('"event": "train"') if metrics.exists() else 0
            moments += [time.monotonic() - started] * (count - len(moments))
            if pid:
                break
            time.sleep(1 / _LOOKS_A_SECOND)
    if status or not moments:
        raise RuntimeError(f"{' '.join(command)} ended with {status}:\n{log.read_text()[-3000:]}")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["event"] == "train"]
    return Measured(losses, moments[0], moments[-1] - moments[WARM_UP_STEPS - 1], usage.ru_maxrss * 1024)


def run_contender(contender: Contender, folder: Path, recipe: Path, environments: Path, threads: int) -> Measured:
    """Run one contender once."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    own = folder / contender.label.replace(" ", "-")
    log = folder / f"{own.name}.log"
    if contender.name == "onecurve":
        command = [sys.executable, "train.py", str(recipe), "--output_dir", str(own), "--train.resume", "never"]
        command += ["--train.packing", "on"] if contender.league == "best" else []
    else:
        python = environments / contender.name / "bin" / "python"
        script = Path(__file__).with_name("runners") / f"{contender.name}.py"
        command = [str(python), str(script), str(folder / "work.json"), str(own), contender.league]
    return run(command, own / "metrics.jsonl", environment, log)


def compare(work_name: str, method: str, arguments: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """Run every contender once a round, in turn, and return a row for each."""
    work = WORKS[work_name]
    recipe = prepare(work, method, folder)
    tokens = (
        sum(len(json.loads(line)["input_ids"]) for line in (folder / "examples.jsonl").read_text().splitlines())
        / work.num_steps
        * (work.num_steps - WARM_UP_STEPS)
    )
    contenders = [
        Contender("onecurve", "best"),
        Contender("onecurve", "defaults"),
        *(peer for peer in PEERS if work.task in peer.tasks),
    ]
    contenders = [c for c in contenders if c.name == "onecurve" or c.name in arguments.peers]
    runs: dict[str, list[Measured]] = {contender.label: [] for contender in contenders}
    for number in range(arguments.rounds):
        for contender in contenders if number % 2 == 0 else contenders[::-1]:
            runs[contender.label].append(
                run_contender(contender, folder, recipe, arguments.environments, arguments.threads)
            )
    ours = runs[contenders[0].label]
    return [_row(work_name, method, label, found, ours, tokens) for label, found in runs.items()]


def _row(
    work: str, method: str, label: str, found: list[Measured], ours: list[Measured], tokens: float
) -> dict[str, object]:
    def ratios(of: str) -> list[float]:
        return sorted(getattr(theirs, of) / getattr(own, of) for theirs, own in zip(found, ours, strict=True))

    return {
        "work": work,
        "method": method,
        "contender": label,
        "tokens_per_second": round(tokens / statistics.median(run.steady for run in found), 1),
        "speed_of_ours": [round(ratio, 3) for ratio in ratios("steady")],
        "first_step_seconds": round(statistics.median(run.first_step for run in found), 2),
        "our_first_step_of_theirs": [round(1 / ratio, 3) for ratio in ratios("first_step")],
        "peak_megabytes": round(statistics.median(run.peak for run in found) / 1e6),
        "our_peak_of_theirs": [round(1 / ratio, 3) for ratio in ratios("peak")],
        "first_loss_difference": abs(found[0].losses[0] / ours[0].losses[0] - 1),
        "mean_loss_difference": abs(statistics.mean(found[0].losses) / statistics.mean(ours[0].losses) - 1),
    }


def main() -> None:
    """Print a JSON row for each contender and a table at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--works", nargs="+", default=list(WORKS), choices=list(WORKS))
    parser.add_argument("--methods", nargs="+", default=["full", "lora"], choices=["full", "lora"])
    parser.add_argument("--peers", nargs="*", default=["hf_trainer", "trl_sft"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--environments", type=Path, default=ROOT / "benchmarks" / ".environments")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for work in arguments.works:
            for method in arguments.methods:
                for row in compare(work, method, arguments, Path(folder) / f"{work}-{method}"):
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"load": os.getloadavg(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
