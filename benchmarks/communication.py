"""What a step sends between ranks, counted in real runs: `python benchmarks/communication.py [--ranks 2 4] [--wire]`.

Each run is a launch of train.py under torch's profiler, which sees every collective with its shapes, DDP's own among
them. A table follows, a line a run, in MB a step and rank: what bandwidth-optimal collectives send for those calls,
what the textbook says, and with `--wire` (as root, on Linux) what the loopback device of a network namespace of its own
carried, which is gloo's way of doing it.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

FIRST, LAST = 4, 5
"""The steps that are counted: ZeRO-3 knows the order of its modules after two passes, and gathers as it will then."""
SENT = {
    "allreduce": lambda numel, ranks: 2 * numel * (ranks - 1) / ranks,
    "allgather": lambda numel, ranks: numel * (ranks - 1) / ranks,
    "reduce_scatter": lambda numel, ranks: numel * (ranks - 1) / ranks,
    "reduce": lambda numel, ranks: numel * (ranks - 1) / ranks,
    "broadcast": lambda numel, ranks: numel * (ranks - 1) / ranks,
}
"""Elements that a rank sends, on average, of a whole tensor of `numel`: ring and chain algorithms (Thakur, Rabenseifner
and Gropp, Optimization of collective communication operations in MPICH, 2005, sections 4.1 to 4.5)."""
_OPERATIONS = {
    "c10d::allreduce_": "allreduce",
    "c10d::_allgather_base_": "allgather",
    "c10d::allgather_": "allgather",
    "c10d::_reduce_scatter_base_": "reduce_scatter",
    "c10d::reduce_scatter_": "reduce_scatter",
    "c10d::reduce_": "reduce",
    "c10d::broadcast_": "broadcast",
}
_BYTES = {"float": 4, "double": 8, "c10::Half": 2, "c10::BFloat16": 2, "long int": 8, "int": 4, "unsigned char": 1}


def textbook(form: str, passes: int, trained: float, frozen: float, ranks: int) -> float:
    """Return the bytes a rank sends in a step, by Rajbhandari et al., ZeRO, SC 2020, section 7.

    Args:
        form: ddp, zero1, zero2 or zero3.
        passes: Forward and backward passes a rank makes in a step.
        trained: Bytes of the trained parameters.
        frozen: Bytes of the others.
        ranks: How many there are.
    """
    volume = {
        "ddp": 2 * trained,
        "zero1": 2 * trained,
        "zero2": (passes + 1) * trained,
        "zero3": passes * (3 * trained + 2 * frozen),
    }
    return volume[form] * (ranks - 1) / ranks


def _elements(dims: Any) -> int:
    if dims and isinstance(dims[0], list):
        return sum(_elements(one) for one in dims)
    return math.prod(dims) if dims else 0


def _calls(trace: Path, ranks: int) -> list[tuple[str, int]]:
    """Read (operation, bytes of the whole tensor) of every collective in a profiler's trace."""
    found = []
    for event in json.loads(trace.read_text())["traceEvents"]:
        if event.get("name") not in _OPERATIONS:
            continue
        kind, dims = _OPERATIONS[event["name"]], event["args"]["Input Dims"]
        numel = max(_elements(dims[0]), _elements(dims[1]))
        if event["name"] == "c10d::allgather_":  # the profiler shows only what a rank gives to it
            numel *= ranks
        size = next((_BYTES[name] for name in event["args"]["Input type"][:2] if name in _BYTES), 4)
        found.append((kind, numel * size))
    return found


def _loopback() -> int:
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    return next((int(line.split()[9]) for line in lines if line.split()[0] == "lo:"), 0)


def count(argv: list[str], run: Any) -> None:
    """Be one rank of a run; rank 0 writes what it counted to `counted.json` in the output directory."""
    import torch.distributed as dist
    from torch.profiler import ProfilerActivity, profile

    import train
    from onecurve import step as steps

    original, counted = steps.train_step, {"calls": [], "wire": 0.0}
    folder = Path(argv[argv.index("--output_dir") + 1])

    def train_step(strategy: Any, loader: Any, step: Any, *rest: Any) -> Any:
        if step.number < FIRST:
            return original(strategy, loader, step, *rest)
        dist.barrier()
        before = _loopback()
        dist.barrier()
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
            outcome = original(strategy, loader, step, *rest)
        dist.barrier()
        counted["wire"] += (_loopback() - before) / dist.get_world_size()
        if dist.get_rank() == 0:
            trace = folder / "trace.json"
            seen.export_chrome_trace(str(trace))
            counted["calls"] += _calls(trace, dist.get_world_size())
            sizes: dict[bool, int] = {True: 0, False: 0}
            for parameter in strategy.unwrapped().parameters():
                numel = getattr(parameter, "ds_numel", parameter.numel())
                sizes[parameter.requires_grad] += numel * parameter.element_size()
            passes = -(-len(step.micro_batches) // dist.get_world_size())
            facts = {"trained": sizes[True], "frozen": sizes[False], "passes": passes}
            (folder / "counted.json").write_text(json.dumps(counted | facts))
        return outcome

    steps.train_step = train_step
    train.main(argv, run)


def measure(form: str, ranks: int, recipe: Path, folder: Path, wire: bool, zero: dict[str, Any]) -> dict[str, Any]:
    """Launch one run and return what rank 0 counted, a step."""
    words = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    words += ["--config_file", str(ROOT / f"accelerate_configs/{form}.yaml"), "--num_processes", str(ranks)]
    if zero and form != "ddp":
        settings = json.loads((ROOT / f"ds_configs/{form}.json").read_text())
        settings["zero_optimization"] |= zero
        (folder / f"{form}.json").write_text(json.dumps(settings))
        words += ["--deepspeed_config_file", str(folder / f"{form}.json")]
    output = folder / f"{form}-{ranks}"
    words += [__file__, "rank", str(recipe), "--output_dir", str(output), "--train.resume", "never"]
    if wire:
        words = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-6000:])
    counted = json.loads((output / "counted.json").read_text())
    num_steps = LAST - FIRST + 1
    sent = dict.fromkeys(SENT, 0.0)
    for kind, num_bytes in counted["calls"]:
        sent[kind] += SENT[kind](num_bytes, ranks) / num_steps
    facts = {key: counted[key] for key in ("trained", "frozen", "passes")}
    return facts | {"sent": sent, "calls": len(counted["calls"]) / num_steps, "wire": counted["wire"] / num_steps}


def main() -> None:
    """Print the table."""
    from work import WORKS, prepare

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--forms", nargs="+", default=["ddp", "zero1", "zero2", "zero3"])
    parser.add_argument("--methods", nargs="+", default=["full", "lora"])
    parser.add_argument("--passes", type=int, default=2, help="forward and backward passes of a rank in a step")
    parser.add_argument("--wire", action="store_true", help="also count what the loopback device carried; needs root")
    parser.add_argument("--zero", type=json.loads, default={}, help="JSON that goes into zero_optimization")
    arguments = parser.parse_args()
    print("| | trained | ranks | all-reduce | reduce | reduce-scatter | all-gather | calls | sum | textbook | wire |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for method in arguments.methods:
        for ranks in arguments.ranks:
            with tempfile.TemporaryDirectory() as name:
                examples = 2 * ranks * arguments.passes
                shape = replace(WORKS["pretraining"], global_batch_size=examples, micro_batch_size=2, num_steps=LAST)
                recipe = prepare(shape, method, Path(name))
                for form in arguments.forms:
                    found = measure(form, ranks, recipe, Path(name), arguments.wire, arguments.zero)
                    facts = (found[key] for key in ("passes", "trained", "frozen"))
                    kinds = ("allreduce", "reduce", "reduce_scatter", "allgather")
                    cells = [f"{found['sent'][kind] / 1e6:,.2f}" for kind in kinds]
                    cells += [f"{found['calls']:,.0f}", f"{sum(found['sent'].values()) / 1e6:,.2f}"]
                    cells += [f"{textbook(form, *facts, ranks) / 1e6:,.2f}", f"{found['wire'] / 1e6:,.2f}"]
                    print(f"| {form} | {method} | {ranks} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        from onecurve.run.lifecycle import execute, leave

        leave(execute(count, sys.argv[2:]))
    main()
