"""One rank's windows during a save, copied before training overwrites them."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from errno import EIO
from functools import partial
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any, BinaryIO

import torch

from onecurve.checkpoint.manifest import Damaged
from onecurve.checkpoint.tensors import CODES, TensorWindow, dtype_name, is_finite
from onecurve.machine.accelerator import Device, accelerator_of

_CHUNK = 2**20
_PINNED = 2**30
"""Bytes of each piece of page-locked memory. torch rounds a request up to a power of two and keeps it: 36 GB at once
would take 64 GiB. Source: CachingHostAllocator.h."""


def window_key(tensor: str, offset: int) -> str:
    """Name a window inside a file."""
    return f"{tensor}@{offset}"


class Staging:
    """The tensors of one save: GPU tensors are copied to pinned memory, CPU tensors are referenced until `secure`.

    Training changes weights and moments only in its update. What the file does not have by then, `secure` copies: most
    often nothing, because the forward and backward passes before it take longer than writing.
    """

    def __init__(self) -> None:
        self.pinned: list[torch.Tensor] = []
        """Page-locked memory for what came from a device; the next save uses it again."""
        self.windows: list[tuple[TensorWindow, list[torch.Tensor]]] = []
        """What was taken and the values it had, in one or several runs, in the file's order."""
        self.begun = 0
        """Windows whose writing has begun."""
        self.secured_seconds = 0.0
        """That `secure` took since `take`."""
        self.lock = Lock()
        """Held while a piece of a window is read, and while what is read changes."""

    def take(self, pieces: Iterable[TensorWindow], copy: bool = True) -> None:
        """Take live values; until `secure` returns they must not change.

        Without `copy`, which is for a save that no update follows, what lies on a device is read from there as it is
        written: no host memory is needed for it.
        """
        # Wide elements first, so that each window is aligned
        ordered = sorted(pieces, key=lambda piece: (-piece.values.element_size(), piece.tensor, piece.offset))
        for piece in ordered:
            assert piece.values.dim() == 1 and 0 <= piece.offset and piece.end <= piece.numel, piece.tensor
        placed = [(piece, accelerator_of(piece.values.device)) for piece in ordered]
        devices = {id(device): device for _, device in placed if device}.values()
        if copy and devices:
            self._make_room(sum(piece.values.nbytes for piece, device in placed if device), next(iter(devices)))
        windows, start = [], 0
        for piece, device in placed:
            values = piece.values.detach().contiguous()
            if copy and device:
                windows.append((piece, self._copied(values, start, device)))
                start += values.nbytes
            else:
                windows.append((piece, [values]))
        for device in devices:
            device.synchronize()
        self.windows, self.begun, self.secured_seconds = windows, 0, 0.0

    def _make_room(self, num_bytes: int, device: Device) -> None:
        whole, rest = divmod(num_bytes, _PINNED)
        for number, size in enumerate([_PINNED] * whole + [rest] * bool(rest)):
            if number == len(self.pinned) or self.pinned[number].numel() < size:
                del self.pinned[number:]  # before the new one: never two at once
                self.pinned.append(device.pinned(size))

    def _copied(self, values: torch.Tensor, start: int, device: Device) -> list[torch.Tensor]:
        """Begin to copy values to page-locked memory, from its byte `start` on; return where they will be."""
        parts, size, done = [], values.element_size(), 0
        while done < values.numel():
            number, at = divmod(start + done * size, _PINNED)
            room = self.pinned[number][at:]
            count = min(values.numel() - done, room.numel() // size)
            parts.append(room[: count * size].view(values.dtype))
            device.copy(parts[-1], values[done : done + count])
            done += count
        return parts

    def secure(self) -> None:
        """Copy what is not yet written: training is about to change it."""
        started = perf_counter()
        with self.lock:
            first = max(0, self.begun - 1)  # the last one begun may be half read
            for number, (piece, parts) in enumerate(self.windows[first:], start=first):
                if parts and parts[0].data_ptr() == piece.values.data_ptr():
                    self.windows[number] = piece, [parts[0].clone()]
            self.secured_seconds += perf_counter() - started

    def release(self) -> None:
        """Let go of the values; until the next `take` there is nothing to keep."""
        with self.lock:
            self.windows = []

    def held(self) -> list[tuple[str, int, tuple[int, ...], str, int, int]]:
        """Describe the windows as the manifest wants them."""
        return [
            (p.tensor, p.numel, tuple(p.shape), dtype_name(p.values.dtype), p.offset, p.values.numel())
            for p, _ in self.windows
        ]

    def require_finite(self) -> None:
        """Check the values that will be written.

        Raises:
            Damaged: A window holds NaN or infinity.
        """
        for number, (piece, _) in enumerate(self.windows):
            with self.lock:
                if not all(is_finite(part) for part in self.windows[number][1]):
                    raise Damaged(f"{piece.tensor} is not finite")

    def write(self, path: Path, metadata: dict[str, str], phase: Callable[[str], None]) -> tuple[str, int, str]:
        """Write the file, through to the disk, and release the values; return its name, size and sha256.

        The hash is taken of what was meant, while writing. Then the file is read back, past the page cache where the
        system lets us, and must hash to the same: a hash of the read-back alone would bless whatever the disk made
        of the bytes, a hash taken while writing alone would find it only on the day of the resume.
        """
        intended = hashlib.sha256()
        with open(path, "xb") as file:
            for number, chunk in enumerate(self._chunks(metadata)):
                with self.lock:
                    content = bytes(chunk())  # so that a disk that hangs holds nobody else up
                intended.update(content)
                file.write(content)
                if number == 1:
                    phase("half-written")
            self.release()
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            size = file.tell()
        phase("written")
        if file_sha256(path) != intended.hexdigest():
            raise OSError(EIO, "What was read back is not what was written", str(path))
        return path.name, size, intended.hexdigest()

    def _chunks(self, metadata: dict[str, str]) -> Iterator[Callable[[], Any]]:
        """Yield what returns the bytes of each part of the file, to be called with the lock held."""
        header = self._header(metadata)
        yield lambda: header
        for number, (_, parts) in enumerate(self.windows):
            for k, part in enumerate(parts):
                for start in range(0, part.nbytes, _CHUNK):
                    yield partial(self._bytes, number, k, start)

    def _bytes(self, number: int, part: int, start: int) -> Any:
        self.begun = number + 1
        return self.windows[number][1][part].view(torch.uint8)[start : start + _CHUNK].cpu().numpy().data

    def _header(self, metadata: dict[str, str]) -> bytes:
        entries: dict[str, Any] = {"__metadata__": metadata}
        start = 0
        for piece, _ in self.windows:
            values = piece.values
            if not values.numel():
                continue
            entries[window_key(piece.tensor, piece.offset)] = {
                "dtype": CODES[values.dtype],
                "shape": [values.numel()],
                "data_offsets": [start, start + values.nbytes],
            }
            start += values.nbytes
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def file_sha256(path: Path) -> str:
    """Hash a file as it reads now."""

    def chunks(file: BinaryIO) -> Iterator[bytes]:
        while chunk := file.read(_CHUNK):
            yield chunk

    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        for chunk in chunks(file):
            digest.update(chunk)
    return digest.hexdigest()
