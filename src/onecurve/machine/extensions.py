"""A lock for compiling and loading operators, which is released when its process dies.

Torch's own is a file that stays when its process is killed, and every later start on the machine then waits for ever.
"""

from typing import Any

from filelock import FileLock, Timeout
from torch.utils import cpp_extension


class _Baton:
    """Stands in for torch.utils.file_baton.FileBaton."""

    def __init__(self, lock_file_path: str, **options: Any) -> None:
        self.lock = FileLock(f"{lock_file_path}.held")  # not torch's name: what lies there may be a dead process's

    def try_acquire(self) -> bool:
        try:
            self.lock.acquire(blocking=False)
        except Timeout:
            return False
        return True

    def wait(self) -> None:
        with self.lock:
            pass

    def release(self) -> None:
        self.lock.release()


def outlive_killed_compilers() -> None:
    """Have torch take turns by that lock from here on."""
    cpp_extension.FileBaton = _Baton  # type: ignore[misc, assignment]
