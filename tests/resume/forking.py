"""Real runs of train.py without a launch's imports: ranks forked from one process that has everything imported.

A run cannot tell: a rank has the environment that the launcher really gives it, its own arguments and output files,
and leaves as train.py does.
"""

import ctypes
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.launching import ROOT, Finished, command, environment

WARM = (
    "accelerate",
    "datasets",
    "deepspeed",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.stage_1_and_2",
    "evaluate",
    "peft",
    "safetensors.torch",
    "sklearn.metrics",
    "torch.distributed",
    "torch.nn.parallel",
    "transformers.integrations.deepspeed",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "train",
    "onecurve.adapters",
    "onecurve.data",
    "onecurve.machine.distributed",
    "onecurve.evaluation",
    "onecurve.export.model_folder",
    "onecurve.faults",
    "onecurve.model.loading",
    "onecurve.resume",
    "onecurve.step",
    "onecurve.strategies.plain",
    "onecurve.strategies.zero",
    "onecurve.summary",
    "onecurve.tracking",
)
GRACE_SECONDS = 10
"""How long ranks have to end on a SIGTERM after another one failed."""
_END_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of linux/prctl.h."""


@dataclass
class Started:
    """A run that is under way."""

    output_dir: Path
    folder: Path
    """Where each rank's stdout and stderr go."""
    pids: list[int]
    answers: Iterator[dict[str, Any]]

    @property
    def under_way(self) -> bool:
        """Whether any rank still runs."""
        return any(Path(f"/proc/{pid}").exists() for pid in self.pids)

    def kill(self, *ranks: int) -> None:
        """SIGKILL these ranks; none named: all of them."""
        for rank in ranks or range(len(self.pids)):
            with suppress(ProcessLookupError):  # it has ended
                os.kill(self.pids[rank], signal.SIGKILL)

    def wait(self) -> Finished:
        """Return when every rank has ended: with the code of the first one that failed."""
        code = next(self.answers)["exit_code"]
        stdout, stderr = (
            "".join((self.folder / f"rank-{rank}.{kind}").read_text() for rank in range(len(self.pids)))
            for kind in ("out", "err")
        )
        return Finished(self.output_dir, code, stdout, stderr)


class Forks:
    """The warm process; close it, or use it as a context."""

    def __init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.answers = map(json.loads, self.server.stdout)
        self.environments: dict[tuple[str, int], list[dict[str, str]]] = {}
        self.folder = TemporaryDirectory()
        self.number = 0

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.stdin.close()
        self.server.wait(60)
        self.folder.cleanup()

    def start(
        self,
        recipe: Path,
        output_dir: Path,
        how: str = "python",
        *overrides: str,
        num_processes: int = 2,
        hang: tuple[str, int, int] | None = None,
    ) -> Started:
        """Start a run, one at a time.

        Args:
            recipe: As for `tests.launching.launch`, and so are the following.
            output_dir: The run directory.
            how: A file of accelerate_configs/, or `python`.
            *overrides: Settings.
            num_processes: Ranks, unless `how` is for one.
            hang: A phase of the checkpoint's writer, a rank and a step: that rank, once there, goes no further, and
                writes a file named `hangs` in the run directory.
        """
        arguments = [str(recipe), "--output_dir", str(output_dir), *overrides]
        mark = hang and (*hang, str(output_dir / "hangs"))
        return self._start("train", output_dir, how, num_processes, arguments, mark)

    def run_script(self, script: str, how: str, *arguments: str, num_processes: int = 2) -> Finished:
        """Run another module's `main` in place of train.py's."""
        return self._start(script, Path(), how, num_processes, list(arguments), None).wait()

    def _start(
        self, script: str, output_dir: Path, how: str, num_processes: int, arguments: list[str], hang: Any
    ) -> Started:
        if (how, num_processes) not in self.environments:
            self.environments[how, num_processes] = launched_environments(how, num_processes)
        self.number += 1
        folder = Path(self.folder.name) / str(self.number)
        folder.mkdir()
        request = {
            "environments": self.environments[how, num_processes],
            "script": script,
            "arguments": arguments,
            "folder": str(folder),
            "hang": hang,
        }
        print(json.dumps(request), file=self.server.stdin, flush=True)
        return Started(output_dir, folder, next(self.answers)["pids"], self.answers)

    def launch(
        self, recipe: Path, output_dir: Path, how: str = "python", *overrides: str, num_processes: int = 2
    ) -> Finished:
        """Run to whatever end."""
        return self.start(recipe, output_dir, how, *overrides, num_processes=num_processes).wait()

    def train(
        self, recipe: Path, output_dir: Path, how: str = "python", *overrides: str, num_processes: int = 2
    ) -> Finished:
        """Run to the end, and insist that it is a good one."""
        run = self.launch(recipe, output_dir, how, *overrides, num_processes=num_processes)
        assert run.exit_code == 0, run.stdout[-3000:] + run.stderr[-6000:]
        return run


def launched_environments(how: str, num_processes: int) -> list[dict[str, str]]:
    """Launch for real, and learn what each rank's environment is."""
    with TemporaryDirectory() as folder:
        script = Path(__file__).with_name("launched_environment.py")
        subprocess.run(
            [*command(how, num_processes), str(script), folder],
            cwd=ROOT, env=environment(), check=True, capture_output=True, timeout=540,
        )  # fmt: skip
        count = len(os.listdir(folder))
        return [json.loads((Path(folder) / f"rank-{rank}.json").read_text()) for rank in range(count)]


def serve() -> None:
    """Answer requests on stdin until it ends: the ranks' process ids at once, their exit code when all have ended."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # imports print
    for name in WARM:
        importlib.import_module(name)
    importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("")  # 1,000 patterns
    gc.freeze()
    for line in sys.stdin:
        # What a thread holds when a process is forked stays held in the child for ever. Arrow's allocator knows.
        threads = {task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}
        assert len(threads - {"jemalloc_bg_thd"}) == 1, f"an import has started a thread: {threads}"
        request = json.loads(line)
        with _store("MASTER_PORT" in request["environments"][0]) as port:
            for rank in range(len(request["environments"])):  # not by a rank itself: it may be ended before that
                for kind in ("out", "err"):
                    Path(request["folder"], f"rank-{rank}.{kind}").touch()
            pids = []
            for rank, given in enumerate(request["environments"]):
                own = {**given, "MASTER_PORT": port} if "MASTER_PORT" in given else given
                pids.append(_fork(partial(_rank, rank, own, request)))
            print(json.dumps({"pids": pids}), file=answers)
            exit_code = _wait(pids)
        print(json.dumps({"exit_code": exit_code}), file=answers)


def _fork(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid:
        return pid
    ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)
    try:
        work()
    except BaseException:  # noqa: BLE001  a child that went on would be a second server
        traceback.print_exc()
    finally:
        os._exit(70)


@contextmanager
def _store(wanted: bool) -> Iterator[str]:
    """Host what ranks find each other by, as torchrun's agent does, where it is wanted; yield its port.

    In a process of its own, because it is a thread.
    """
    if not wanted:
        yield ""
        return
    reader, writer = os.pipe()

    def host() -> None:
        from torch.distributed import TCPStore

        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(writer, f"{store.port}\n".encode())
        signal.pause()

    pid = _fork(host)
    os.close(writer)
    with open(reader) as told:
        port = told.readline().strip()
    try:
        yield port
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _rank(rank: int, environment: dict[str, str], request: dict[str, Any]) -> None:
    for descriptor, name in enumerate((os.devnull, *(f"{request['folder']}/rank-{rank}.{k}" for k in ("out", "err")))):
        os.dup2(os.open(name, os.O_RDONLY if descriptor == 0 else os.O_WRONLY), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    from onecurve.run.lifecycle import execute, leave

    if request["hang"]:
        _hang_in_the_writer(rank, *request["hang"])
    sys.argv = [f"{request['script']}.py", *request["arguments"]]
    leave(execute(importlib.import_module(request["script"]).main, sys.argv[1:]))


def _hang_in_the_writer(rank: int, phase: str, its_rank: int, first: int, mark: str) -> None:
    from onecurve import resume

    class Hanging(resume.Writer):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, phase=self.reached)

        def save(self, step: int, *arguments: Any) -> float:
            self.asked = step
            return super().save(step, *arguments)

        def reached(self, name: str) -> None:
            if name == "staged":  # until then the save before may be under way
                self.step = self.asked
            if (name, rank) == (phase, its_rank) and self.step >= first:
                Path(mark).touch()
                time.sleep(10_000)

    resume.Writer = Hanging


def _wait(pids: list[int]) -> int:
    """Wait for every rank; when one fails, end the others as a launcher does."""
    left, failed, deadline = set(pids), 0, 0.0
    while left:
        for pid in sorted(left):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                left.remove(pid)
                code = os.waitstatus_to_exitcode(status)
                if code and not failed:
                    failed, deadline = code, time.monotonic() + GRACE_SECONDS
                    _signal(left, signal.SIGTERM)
        if failed and time.monotonic() > deadline:
            _signal(left, signal.SIGKILL)
        time.sleep(0.01)
    return failed


def _signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


if __name__ == "__main__":
    serve()
