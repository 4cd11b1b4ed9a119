"""What the first run on a GPU asks, in order: each part returns its numbers, or raises what its answer is."""

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_bench import ERROR_CHARACTERS, Bench, Failed, Numbers, Run, Skipped, train


def probe(name: str) -> Callable[[Bench], Numbers]:
    """Return a part that runs one of gpu_probes.py."""

    def run(bench: Bench) -> Numbers:
        out = bench.folder / f"{name}.json"
        bench.run("benchmarks/gpu_probes.py", name, bench.device, out)
        return json.loads(out.read_text())

    return run


def our_gradients(bench: Bench) -> Numbers:
    """Measure gradients under a mask by every kernel; what onecurve chooses must be right."""
    numbers = probe("masked_gradients")(bench)
    for length, by_kernel in numbers.items():
        told = by_kernel["as onecurve chooses"]
        # Keys that are nearly alike leave little of the gradient of queries: half precision shows there first
        limits = {"not finite": 0, "queries": 0.5, "keys": 0.03, "values": 0.03}
        if not isinstance(told, dict) or not all(0 <= told[name] <= limit for name, limit in limits.items()):
            raise Failed(f"{length}: {told}", numbers)
    return numbers


def run_tests(*words: str) -> Callable[[Bench], Numbers]:
    """Return a part that runs tests of tests/gpu: those for a GPU, or in a rehearsal their halves for a CPU."""

    def run(bench: Bench) -> Numbers:
        report = bench.folder / ("-".join(Path(word).stem for word in words) + ".xml")
        report.unlink(missing_ok=True)
        which = "not gpu" if bench.rehearsal else "gpu"
        done = bench.run("-m", "pytest", "-m", which, f"--junitxml={report}", *words, may_fail=True)
        if not report.exists():
            raise Failed((done.stdout + done.stderr)[-ERROR_CHARACTERS:])
        cases = [*ElementTree.parse(report).iter("testcase")]
        failed = {
            str(case.get("name")): (found.get("message") or "")[:500]
            for case in cases
            for found in [*case.iter("failure"), *case.iter("error")]
        }
        skipped = {str(case.get("name")): told.get("message") for case in cases for told in case.iter("skipped")}
        numbers: Numbers = {"passed": len(cases) - len(failed) - len(skipped), "failed": failed, "skipped": skipped}
        numbers["said"] = re.findall(r"^.*largest relative.*$", done.stdout, re.MULTILINE)
        if failed or done.returncode not in (0, 5):
            raise Failed(f"{len(failed)} of {len(cases)} tests failed\n{done.stdout[-ERROR_CHARACTERS:]}", numbers)
        if not numbers["passed"]:
            raise Skipped(f"no test ran: {skipped or 'none is for this device'}")
        return numbers

    return run


def packed_and_padded(bench: Bench) -> Numbers:
    """Train packed: torch's variable-length kernel must be in the profile, and the losses be the padded ones."""
    profiled = ["--tracking.profile", "5", "--train.stop_after", "12"]
    packed = train(bench, "packed", "--train.packing", "on", *profiled)
    padded = train(bench, "padded", "--train.packing", "off", *profiled)
    operators = {run.folder.name: _operators(run) for run in (packed, padded)}
    numbers: Numbers = {run.folder.name: run.numbers() for run in (packed, padded)}
    numbers |= {"operators": operators, "apart": (apart := _apart(padded.losses, packed.losses))}
    attention = [name for name, *_ in operators["packed"] if "attention" in name or "varlen" in name]
    if not bench.rehearsal and not any("varlen" in name or "flash_attention" in name for name in attention):
        raise Failed(f"no variable-length kernel among the operators, but {attention}", numbers)
    if apart > (1e-5 if bench.rehearsal else 2e-3):
        raise Failed(f"packed and padded losses are {apart:.1e} apart", numbers)
    return numbers


def same_head(bench: Bench) -> Numbers:
    """Draw a new head in one process and under ZeRO-3: step 0 must hold the same weights."""
    if not bench.has("deepspeed"):
        raise Skipped("deepspeed is not installed")
    rows = [{"text": f"w{i} w{i + 1}", "label": ("up", "down", "level")[i % 3]} for i in range(64)]
    data = bench.folder / "labelled.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--task.name", "text_classification", "--data.train", str(data), "--data.eval", "null"]
    words += ["--train.stop_after", "1", "--checkpoint.also", "[0]"]
    runs = [train(bench, f"head-{how}", *words, how=how) for how in ("python", "zero3")]
    differing = _differing(bench, *(run.folder / "checkpoints" / f"step-{0:08}" for run in runs))
    if differing:
        raise Failed("step 0 differs\n" + "\n".join(differing), {"differing": differing})
    return {"differing": []}


def resumed(bench: Bench) -> Numbers:
    """Train 20 steps twice and once in two launches: the latter is no further apart than the former."""
    steps = 6 if bench.rehearsal else 20
    words = ["--checkpoint.every", str(steps // 2), "--train.max_steps", str(steps)]
    runs = [train(bench, name, *words) for name in ("straight", "again")]
    train(bench, "interrupted", *words, "--train.stop_after", str(steps // 2))
    runs.append(train(bench, "interrupted", *words, anew=False))
    straight, again, interrupted = (run.losses for run in runs)
    numbers: Numbers = {"straight": straight, "again apart": _apart(straight, again)}
    numbers["interrupted apart"] = _apart(straight, interrupted)
    folders = [run.folder / "checkpoints" / f"step-{steps:08}" for run in runs]
    numbers["again, tensors that differ"] = len(_differing(bench, folders[0], folders[1]))
    numbers["interrupted, tensors that differ"] = len(_differing(bench, folders[0], folders[2]))
    if numbers["interrupted, tensors that differ"] and not numbers["again, tensors that differ"]:
        raise Failed("two uninterrupted runs end with the same weights bit for bit, a resumed one with others", numbers)
    if numbers["interrupted apart"] > 2 * numbers["again apart"] + (1e-7 if bench.rehearsal else 1e-4):
        raise Failed("a resumed run parts from the uninterrupted one by more than two uninterrupted ones", numbers)
    return numbers


def setting(name: str, *overrides: str, needs: str = "", tolerance: float = 5e-3, gpu: bool = False) -> Any:
    """Return a part that trains five steps with a setting whose losses are those without, to a tolerance."""

    def run(bench: Bench) -> Numbers:
        if needs and not bench.has(needs):
            raise Skipped(f"{needs} is not installed")
        if gpu and bench.rehearsal:
            raise Skipped("needs a GPU")
        lora = [word for word in overrides if word.startswith("--peft")] and LORA
        plain = bench.folder / "runs" / ("plain-lora" if lora else "plain")
        five = ["--train.stop_after", "5"]
        with bench.shared:
            if not Run(plain, 0).is_over:
                train(bench, plain.name, *lora, *five)
        found = train(bench, f"with-{name}", *overrides, *five)
        apart = _apart(Run(plain, 0).losses, found.losses)
        numbers = found.numbers() | {"apart from a run without": apart}
        if apart > tolerance:
            raise Failed(f"losses are {apart:.1e} apart from those of a run without", numbers)
        return numbers

    return run


def against_a_peer(bench: Bench) -> Numbers:
    """Run one cell of gpu.py with one peer and one round; in a rehearsal only see that it starts."""
    if bench.rehearsal:
        bench.run("benchmarks/gpu.py", "--help")
        raise Skipped("gpu.py starts; its models are too large for a CPU")
    out = bench.folder / "gpu.json"
    bench.run(
        "benchmarks/gpu.py", "--cells", "1b_4k-lora", "--contenders", "hf_trainer defaults", "--rounds", "1",
        "--interpreter", bench.python, "--json", out,
    )  # fmt: skip
    return json.loads(out.read_text())


LORA = ["--peft.method", "lora", "--peft.r", "8", "--peft.target_modules", "all-linear"]
ROUNDED = ["--model.dtype", "bfloat16"]
PARTS: dict[int, dict[str, Callable[[Bench], Numbers]]] = {
    1: {
        "versions": probe("versions"),
        "gradients under a mask, by kernel": our_gradients,
        "new lengths, by kernel": probe("new_lengths"),
        "packed rows": probe("packed_rows"),
    },
    2: {
        "tests of attention": run_tests("tests/gpu/test_packed_attention.py", "tests/gpu/test_masked_attention.py"),
        "tests of activations": run_tests("tests/gpu/test_activations.py"),
        "tests on the device": run_tests("tests/gpu/test_on_device.py", "tests/gpu/test_waiting.py"),
        "tests of curves, fp32": run_tests("tests/gpu/test_cuda.py", "-k", "fp32"),
        "tests of curves, others": run_tests("tests/gpu/test_cuda.py", "-k", "not fp32"),
        "tests of runs": run_tests("tests/gpu/test_runs.py", "tests/gpu/test_saving.py", "-k", "not auto"),
        "tests that fill the GPU": run_tests("tests/gpu/test_runs.py", "-k", "auto"),
        "tests of heads": run_tests("tests/gpu/test_heads.py"),
        "tests of tasks": run_tests("tests/gpu/test_tasks.py"),
    },
    3: {"packed and padded": packed_and_padded},
    4: {"a head at step 0, ZeRO-3": same_head},
    5: {"resumed": resumed},
    6: {
        "auto": setting("auto", "--train.micro_batch_size", "auto"),
        "compile": setting("compile", "--train.compile", "true", gpu=True),
        "chunked": setting("chunked", "--train.logits", "chunked"),
        "offload": setting("offload", "--train.activations", "offload"),
        "recompute": setting("recompute", "--train.activations", "recompute"),
        "selective": setting("selective", "--train.activations", "selective"),
        "stochastic": setting("stochastic", *ROUNDED, "--optim.rounding", "stochastic", tolerance=3e-2),
        "kahan": setting("kahan", *ROUNDED, "--optim.rounding", "kahan", tolerance=3e-2),
        "lora, twice": setting("lora", *LORA),
        "nf4": setting("nf4", *LORA, "--model.quantization", "nf4", needs="bitsandbytes", tolerance=3e-2),
        "int8": setting("int8", *LORA, "--model.quantization", "int8", needs="bitsandbytes", tolerance=3e-2),
        "adamw_8bit": setting("adamw_8bit", "--optim.name", "adamw_8bit", needs="bitsandbytes", tolerance=1e-2),
        "fp8": setting("fp8", "--train.mixed_precision", "fp8", needs="torchao", tolerance=3e-2, gpu=True),
    },
    7: {"against a peer": against_a_peer},
}
FIRST, LAST = ("1 ",), ("2 tests that fill", "6 auto", "7 ")
"""How the names of those begin that measure time or take all memory: each is alone on the GPU."""


def _operators(run: Run) -> list[tuple[str, ...]]:
    summary = next((run.folder / "profile").glob("summary.md")).read_text()
    return re.findall(r"^\| `(.*?)` \| (.*?) \| (.*?) \|$", summary, re.MULTILINE)


def _apart(ours: list[float], theirs: list[float]) -> float:
    if not ours or len(ours) != len(theirs):
        raise Failed(f"{len(ours)} losses and {len(theirs)}", {"ours": ours, "theirs": theirs})
    return max(abs(a - b) / abs(a) for a, b in zip(ours, theirs, strict=True))


def _differing(bench: Bench, one: Path, other: Path) -> list[str]:
    """Name the tensors that differ between two checkpoints; what runs are called may."""
    diff = bench.run("-m", "onecurve", "checkpoint", "diff", one, other, may_fail=True)
    if diff.returncode not in (0, 1):
        raise Failed((diff.stdout + diff.stderr)[-ERROR_CHARACTERS:])
    lines = [line for line in diff.stdout.splitlines() if line != "no difference"]
    return [line for line in lines if not line.startswith("state.json ")]
