"""The first run on a GPU: what it proves or refutes, part by part, each result kept at once in one JSON file.

`benchmarks/gpu_first.sh` starts it. A call ends within `--seconds`; the next one goes on where it ended, and skips what
has a result. A part that fails is told and does not stop the others. It needs no network, and of onecurve only its
sources. docs/gpu.md says what each part is for.
"""

import argparse
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpu_bench import ROOT, Bench, Failed, Numbers, OutOfTime, Skipped
from gpu_parts import FIRST, LAST, PARTS

Part = Callable[[Bench], Numbers]
LEAST_SECONDS = {False: 45, True: 10}
"""With less time left no part begins: by whether it is a rehearsal."""
OPTIONAL = ("bitsandbytes", "torchao", "pillow", "soundfile", "jiwer", "faster-coco-eval", "trl", "liger-kernel")


class Record:
    """The JSON file: results are in it as soon as they are there."""

    def __init__(self, path: Path, rehearsal: bool) -> None:
        self.path = path
        self.writing = threading.Lock()
        self.content: Numbers = {"rehearsal": rehearsal, "calls": [], "setup": {}, "results": {}}
        if path.exists():
            self.content = json.loads(path.read_text())
        if self.content["rehearsal"] != rehearsal:
            sys.exit(f"gpu_first: {path} is of a {'real run' if rehearsal else 'rehearsal'}: name another with --json.")

    @property
    def results(self) -> dict[str, Numbers]:
        """A part's name -> its result."""
        return self.content["results"]

    def write(self) -> None:
        """Replace the file."""
        with self.writing:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside = self.path.with_suffix(".writing")
            beside.write_text(json.dumps(self.content, indent=1) + "\n")
            beside.replace(self.path)

    def stands(self, name: str, again: bool) -> bool:
        """Whether a part has a result that another attempt would not change."""
        status = self.results.get(name, {}).get("status")
        return status in ("passed", "skipped") or (status == "failed" and not again)


def answer(bench: Bench, work: Part, whole: float, before: Numbers) -> Numbers:
    """Run one part and return its result.

    Args:
        bench: Where.
        work: The part.
        whole: Seconds of a whole call. What does not end within nearly as much never will.
        before: Its result so far, if it has begun before.
    """
    started = time.monotonic()
    result: Numbers = {"status": "passed", "numbers": {}, "error": ""}
    try:
        result["numbers"] = work(bench)
    except Failed as error:
        result |= {"status": "failed", "numbers": error.numbers, "error": str(error)}
    except Skipped as error:
        result |= {"status": "skipped", "error": str(error)}
    except OutOfTime:
        cut = before.get("times_cut", 0) + 1
        ever = time.monotonic() - started < 0.8 * whole and cut < 3
        result |= {"status": "unfinished" if ever else "failed", "error": "out of time", "times_cut": cut}
    except Exception as error:  # noqa: BLE001  whatever is wrong with one part, the others run
        result |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    result |= {"seconds": round(time.monotonic() - started, 1), "ended": time.strftime("%Y-%m-%d %H:%M:%S")}
    return result


def work_off(bench: Bench, record: Record, todo: list[tuple[str, Part]], arguments: argparse.Namespace) -> None:
    """Run parts in order while there is time; of those that need not be alone, first or last, so many at a time."""

    def one(name: str, work: Part) -> None:
        if bench.left < LEAST_SECONDS[bench.rehearsal]:
            return
        print(f"{name} ...", flush=True)
        result = answer(bench, work, arguments.seconds, record.results.get(name, {})) | {"jobs": arguments.jobs}
        record.results[name] = result
        record.write()
        first = result["error"].splitlines()[:1]
        print(f"{name}: {result['status']}, {result['seconds']} s", *first, sep="  ", flush=True)

    for names, jobs in ((FIRST, 1), ("", arguments.jobs), (LAST, 1)):
        turn = [part for part in todo if part[0].startswith(names) and (names or not part[0].startswith(FIRST + LAST))]
        with ThreadPoolExecutor(jobs) as pool:
            for done in [pool.submit(one, *part) for part in turn]:
                done.result()


def set_up(bench: Bench, wheels: Path | None) -> Numbers:
    """Install from a folder of wheels what is missing, in an environment that sees what is there; return what happened.

    torch is left as it is where there is one. What pip cannot resolve it installs one by one, whatever their versions.
    """
    if wheels is None:
        return {"python": bench.python, "wheels": None}
    python = _environment(bench)
    wanted = [*_requirements(), "pytest>=8", *OPTIONAL]
    if bench.has("torch"):
        wanted = [one for one in wanted if not one.startswith("torch>")]
    pip = ["-m", "pip", "--python", python, "install", "--no-index", "--find-links", wheels, "--no-build-isolation"]
    told: Numbers = {"python": str(python), "wheels": str(wheels), "not installed": {}}
    if bench.run(*pip, *wanted, may_fail=True).returncode:
        for one in wanted:
            name = re.split(r"[<>=]", one)[0]
            done = bench.run(*pip, one, may_fail=True)
            if done.returncode and not bench.has(name):
                done = bench.run(*pip, "--no-deps", name, may_fail=True)
            if done.returncode:
                told["not installed"][one] = done.stderr.strip().splitlines()[-1:]
    bench.python = str(python)
    return told


def _environment(bench: Bench) -> Path:
    """Make an environment that sees what its interpreter sees, which may itself be an environment's."""
    folder = bench.folder / "environment"
    python = folder / "bin" / "python"
    if not python.exists():
        bench.run("-m", "venv", "--system-site-packages", "--without-pip", folder)
        seen = bench.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'), sysconfig.get_path('platlib'))")
        for own in folder.glob("lib/python*/site-packages"):
            (own / "seen.pth").write_text(
                "".join(f"import site; site.addsitedir({p!r})\n" for p in seen.stdout.split())
            )
    return python


def _requirements() -> list[str]:
    text = (ROOT / "pyproject.toml").read_text()
    block = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert block
    return re.findall(r'"(.*?)"', block[1])


def chosen(numbers: list[str]) -> Iterator[tuple[str, Part]]:
    """Yield the parts of these numbers, in order."""
    for number, parts in PARTS.items():
        if str(number) in numbers:
            yield from ((f"{number} {name}", work) for name, work in parts.items())


def read_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    assert __doc__
    parser = argparse.ArgumentParser(prog="gpu_first.sh", description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", default=[*map(str, PARTS)], choices=[*map(str, PARTS)])
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to install from what is missing")
    parser.add_argument("--json", type=Path, help="the results; runs/gpu_first/results.json unless it is a rehearsal")
    parser.add_argument("--folder", type=Path, help="models, data and runs; beside the results")
    parser.add_argument("--seconds", type=float, default=540, help="this call ends by then")
    parser.add_argument("--jobs", type=int, default=1, help="parts at a time, where they measure no time; default 1")
    parser.add_argument("--again", action="store_true", help="run again what failed")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU: shows that the parts run")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Run what has no result yet while there is time; 0 where everything chosen has passed or was skipped."""
    arguments = read_arguments(words)
    name = "rehearsal" if arguments.rehearse else "results"
    path = (arguments.json or ROOT / "runs" / "gpu_first" / f"{name}.json").resolve()
    record = Record(path, arguments.rehearse)
    folder = (arguments.folder or path.parent / f"{path.stem}-files").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    variables = {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    variables |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    variables |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"} if arguments.rehearse else {}
    ends = time.monotonic() + arguments.seconds
    bench = Bench(sys.executable, folder, arguments.rehearse, ends, variables)
    call = {"began": time.strftime("%Y-%m-%d %H:%M:%S"), "words": words or sys.argv[1:]}
    record.content["calls"].append(call)
    try:
        record.content["setup"] = set_up(bench, arguments.wheels and arguments.wheels.resolve())
    except (Failed, OutOfTime) as error:
        record.content["setup"] = {"error": str(error) or "out of time"}
    record.write()
    todo = [*chosen(arguments.part)]
    work_off(bench, record, [part for part in todo if not record.stands(part[0], arguments.again)], arguments)
    states = [record.results.get(name, {}).get("status", "to do") for name, _ in todo]
    print(f"{path}: " + ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))
    return int(not set(states) <= {"passed", "skipped"})


if __name__ == "__main__":
    sys.exit(main())
