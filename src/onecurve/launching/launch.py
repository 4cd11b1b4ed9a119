"""One launch of train.py: its ranks started, told of signals, and waited for; its own exit code kept."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from onecurve.errors import LaunchError, UserError
from onecurve.launching.launch_file import LaunchFile
from onecurve.machine import files
from onecurve.ranks.launcher import LAUNCHED
from onecurve.run.lifecycle import EX_TEMPFAIL, SIGNALS

_BY_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SECONDS_TO_SAY_WHY = 120.0
"""For the ranks that are left when one has failed: they find out which one is lost, and why."""
_SECONDS_TO_LEAVE = 30.0
"""From a SIGTERM to a SIGKILL."""
_POLL_SECONDS = 0.05


class Launch:
    """Ranks as children of this process, which end with it; a context that leaves none behind.

    Args:
        argv: train.py's: the recipe and overrides.
        file: How they are started; None: one process, without a launcher.
        output: A file descriptor for what they print, when not this process's own streams.
        variables: Further environment variables.
        program: What is started in train.py's place, as arguments of Python.
    """

    def __init__(
        self,
        argv: list[str],
        file: LaunchFile | None = None,
        output: int | None = None,
        variables: dict[str, str] | None = None,
        program: Sequence[str] = (),
    ) -> None:
        self.command = [sys.executable, *(program or [str(files.root() / "train.py")]), *argv]
        self.name = "the run" if program else "train.py"
        """What messages call that which was started."""
        self.file, self.output, self.variables = file, output, variables or {}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.signalled = False
        self.codes: dict[int, int] = {}
        """Rank -> exit code, in the order in which they ended."""
        self._end_at: float | None = None
        self._ending = signal.SIGTERM

    def __enter__(self) -> "Launch":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if any(process.poll() is None for process in self.processes):
            self._end_now()
            self.wait()

    def start(self) -> None:
        """Start the ranks, unless a signal came first.

        Raises:
            LaunchError: Accelerate refuses the launch file.
        """
        try:
            environments = self._environments()
        except LaunchError:
            if self.signalled:  # a terminal's interrupt reaches Accelerate too
                return
            raise
        # Ranks inherit what is blocked, and train.py lets it through once it can answer; nor does any start unsignalled
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, name) for name in SIGNALS])
        try:
            if not self.signalled:
                for environment in environments:
                    self.processes.append(
                        subprocess.Popen(self.command, env=environment, stdout=self.output, stderr=self.output)
                    )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def run(self) -> int:
        """Start the ranks, pass this process's signals on to them, and return what `wait` does."""
        for name in SIGNALS:
            signal.signal(getattr(signal, name), lambda number, _: self.send(number))
        self.start()
        return self.wait()

    def send(self, number: int) -> None:
        """Pass a signal on to every rank; before there are any, keep them from starting."""
        self.signalled = True
        for process in self.processes:
            process.send_signal(number)

    def wait(self, meanwhile: Callable[[], None] = lambda: time.sleep(_POLL_SECONDS)) -> int:
        """Wait for all ranks and return train.py's exit code: that of the first that failed by itself.

        Where one fails, the others have some time to find out and to say why; a user's mistake is said by rank 0.

        Args:
            meanwhile: What to do between two looks at the ranks.

        Returns:
            As a shell tells it, 128 + the signal, where ranks were only killed.
        """
        while len(self.codes) < len(self.processes):
            for rank, process in enumerate(self.processes):
                if rank not in self.codes and (code := process.poll()) is not None:
                    self.codes[rank] = code
                    self._leave_others_time(code)
            self._end_others()
            meanwhile()
        if not self.processes:
            return EX_TEMPFAIL
        failed = [code for code in self.codes.values() if code]
        by_themselves = [code for code in failed if code > 0]
        return by_themselves[0] if by_themselves else 128 - failed[0] if failed else 0

    def reason(self, exit_code: int) -> str:
        """Say what train.py itself could not: that it was killed, or never started; empty where it spoke."""
        if not self.processes:
            return "interrupted before anything had begun; launch again to start"
        if exit_code <= 128:
            return ""
        name = signal.Signals(exit_code - 128).name
        why = ", probably because memory ran out" if name == "SIGKILL" else ""
        return f"{self.name} was killed by {name}{why}"

    def _leave_others_time(self, code: int) -> None:
        if code and self._end_at is None:
            self._end_at = time.monotonic() + (0 if code == UserError.exit_code else _SECONDS_TO_SAY_WHY)

    def _end_others(self) -> None:
        if self._end_at is not None and time.monotonic() >= self._end_at:
            self._end_now()

    def _end_now(self) -> None:
        for process in self.processes:
            process.send_signal(self._ending)
        self._ending, self._end_at = signal.SIGKILL, time.monotonic() + _SECONDS_TO_LEAVE

    def _environments(self) -> list[dict[str, str]]:
        # DeepSpeed looks for ninja on the path, and an environment need not be activated
        path = os.pathsep.join(filter(None, [os.environ.get("PATH"), str(Path(sys.executable).parent)]))
        own = {**os.environ, "PATH": path, **self.variables, LAUNCHED: "1"}
        if self.file is None:
            return [own]
        world_size = self.file.num_processes
        own = {name: value for name, value in own.items() if name not in _BY_RANK} | self.file.environment()
        if self.file.is_one_process:
            return [own]
        world = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1"}
        world["MASTER_PORT"] = _free_port()
        each = [{**world, "RANK": rank, "LOCAL_RANK": rank} for rank in range(world_size)]
        return [own | {name: str(value) for name, value in of_rank.items()} for of_rank in each]


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
