"""Errors that a backend of collectives finds in its own thread: NCCL's, of a peer that is gone."""

import os
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread
from typing import Any

from onecurve.errors import TrainingError
from onecurve.machine.speaker import spoken

_HANDLING = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
_LEFT_ALONE = "0"
"""NoHandling, of ProcessGroupNCCL.hpp. By default NCCL's watchdog ends the process with SIGABRT, from C++: nobody could
say which rank is lost, and status.json would stay `running`."""
_SECONDS_BETWEEN_LOOKS = 1.0


def report_errors() -> None:
    """Have NCCL's watchdog report errors instead of ending the process; call it before the process group starts.

    What the user set stays, and so does the default where this torch cannot be asked for its errors.
    """
    with suppress(ImportError):  # torch without NCCL
        from torch.distributed import ProcessGroupNCCL

        if hasattr(ProcessGroupNCCL, "get_error"):
            os.environ.setdefault(_HANDLING, _LEFT_ALONE)


def error() -> str:
    """Return what a backend of this process's groups has found, such as `nccl: COMM_ERROR`; empty where all is well."""
    from torch.distributed import distributed_c10d as groups

    asked: list[Any] = list(groups._world.pg_map)
    for group in asked:
        for device in group._device_types:
            backend = group._get_backend(device)
            if (ask := getattr(backend, "get_error", None)) and (found := ask().name) != "SUCCESS":
                return f"{backend.name()}: {found}"
    return ""


class Guard:
    """Looks for errors in a thread until `stop`: while ranks load, nothing else watches over them.

    Args:
        end: Called once with the error; ends the process.
    """

    def __init__(self, end: Callable[[str], object]) -> None:
        self._end, self._stopped = end, Event()

    def start(self) -> None:
        """Begin to look."""
        Thread(target=self._watch, name="guard over collectives", daemon=True).start()

    def stop(self) -> None:
        """Leave what comes to the watch over ranks."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(_SECONDS_BETWEEN_LOOKS):
            if found := error():
                self._end(found)
                return


def _end_before_the_run(found: str) -> None:
    os.write(2, spoken(f"a rank was lost before the run began: {found}\n").encode())
    os._exit(TrainingError.exit_code)


guard = Guard(_end_before_the_run)
"""This process's, from its process group's start until the watch over ranks has begun."""
