"""One rank's windows in host memory, laid out as the body of the safetensors file that they will be."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from errno import EIO
from pathlib import Path
from typing import Any, BinaryIO

import torch

from onecurve.checkpoint.manifest import Damaged
from onecurve.checkpoint.tensors import CODES, Piece, dtype_name, is_finite

_CHUNK = 16 * 2**20


def window_key(tensor: str, offset: int) -> str:
    """Name a window inside a file."""
    return f"{tensor}@{offset}"


class Staging:
    """Holds a copy of what it took last; the memory is used again by the next `take`."""

    def __init__(self) -> None:
        self.buffer = torch.empty(0, dtype=torch.uint8)
        self.windows: list[tuple[Piece, torch.Tensor]] = []
        """What was taken and its copy, in the file's order."""
        self.num_bytes = 0

    def take(self, pieces: Iterable[Piece]) -> None:
        """Copy live values; afterwards training may overwrite them."""
        # Wide elements first, so that each window is aligned
        ordered = sorted(pieces, key=lambda piece: (-piece.values.element_size(), piece.tensor, piece.offset))
        for piece in ordered:
            assert piece.values.dim() == 1 and 0 <= piece.offset and piece.end <= piece.numel, piece.tensor
        self.num_bytes = sum(piece.values.nbytes for piece in ordered)
        devices = {piece.values.device for piece in ordered if piece.values.device.type != "cpu"}
        if self.buffer.numel() < self.num_bytes:
            self.windows = []  # before the new buffer: never two at once
            self.buffer = torch.empty(0, dtype=torch.uint8)
            # Page-locked memory: an accelerator copies to it at full speed, and without waiting in between
            self.buffer = torch.empty(self.num_bytes, dtype=torch.uint8, pin_memory=bool(devices))
        self.windows, start = [], 0
        for piece in ordered:
            copy = self.buffer[start : start + piece.values.nbytes].view(piece.values.dtype)
            copy.copy_(piece.values.detach(), non_blocking=True)
            self.windows.append((piece, copy))
            start += piece.values.nbytes
        for device in devices:
            torch.accelerator.synchronize(device)

    def held(self) -> list[tuple[str, int, tuple[int, ...], str, int, int]]:
        """Describe the windows as the manifest wants them."""
        return [
            (p.tensor, p.numel, tuple(p.shape), dtype_name(p.values.dtype), p.offset, copy.numel())
            for p, copy in self.windows
        ]

    def require_finite(self) -> None:
        """Check the bytes that will be written.

        Raises:
            Damaged: A window holds NaN or infinity.
        """
        for piece, copy in self.windows:
            if not is_finite(copy):
                raise Damaged(f"{piece.tensor} is not finite")

    def write(self, path: Path, metadata: dict[str, str], phase: Callable[[str], None]) -> tuple[str, int, str]:
        """Write the file, through to the disk; return its name, size and sha256.

        The hash is taken of what was meant, while writing. Then the file is read back, past the page cache where the
        system lets us, and must hash to the same: a hash of the read-back alone would bless whatever the disk made
        of the bytes, a hash taken while writing alone would find it only on the day of the resume.
        """
        intended = hashlib.sha256()
        with open(path, "xb") as file:
            for number, chunk in enumerate(self._chunks(metadata)):
                intended.update(chunk)
                file.write(chunk)
                if number == 1:
                    phase("half-written")
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            size = file.tell()
        phase("written")
        if file_sha256(path) != intended.hexdigest():
            raise OSError(EIO, "What was read back is not what was written", str(path))
        return path.name, size, intended.hexdigest()

    def _chunks(self, metadata: dict[str, str]) -> Iterator[Any]:
        yield self._header(metadata)
        body = self.buffer.numpy().data[: self.num_bytes]
        step = min(_CHUNK, max(1, self.num_bytes // 2))  # in two parts at least
        for start in range(0, self.num_bytes, step):
            yield body[start : start + step]

    def _header(self, metadata: dict[str, str]) -> bytes:
        entries: dict[str, Any] = {"__metadata__": metadata}
        start = 0
        for piece, copy in self.windows:
            if not copy.numel():
                continue
            entries[window_key(piece.tensor, piece.offset)] = {
                "dtype": CODES[copy.dtype],
                "shape": [copy.numel()],
                "data_offsets": [start, start + copy.nbytes],
            }
            start += copy.nbytes
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
