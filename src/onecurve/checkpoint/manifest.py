"""The manifest: which files make up a checkpoint, and which file holds which window of which tensor."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from onecurve.checkpoint.folders import MANIFEST
from onecurve.checkpoint.tensors import gap_or_overlap
from onecurve.errors import LaunchError

FORMAT = 1

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Damaged(Exception):
    """What was read is no good manifest, or what was to be written would make none; the message says why."""


@dataclass(frozen=True)
class FileEntry:
    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class StoredWindow:
    """A window: elements [offset, offset + length) of a flattened tensor, in one file."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class Stored:
    """One whole tensor, wherever its windows lie."""

    shape: tuple[int, ...]
    numel: int
    dtype: str
    """As in `torch.float32`, without the `torch`."""
    held: tuple[StoredWindow, ...]
    """By offset."""

    @property
    def files(self) -> set[str]:
        """The files that hold a part."""
        return {held.file for held in self.held}

    def overlapping(self, start: int, stop: int) -> Iterator[StoredWindow]:
        """Yield the windows that hold any of elements [start, stop)."""
        return (held for held in self.held if held.offset < stop and held.offset + held.length > start)

    def problem(self) -> str:
        """Say what is wrong with the windows; empty when they cover the tensor exactly once."""
        return gap_or_overlap(((held.offset, held.length) for held in self.held), 0, self.numel)


@dataclass(frozen=True)
class Manifest:
    step: int
    world_size: int
    """Ranks that wrote it."""
    run_id: str
    """What the state calls the run; empty where it does not."""
    files: tuple[FileEntry, ...]
    tensors: dict[str, Stored]

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(file.size for file in self.files)

    def to_text(self) -> str:
        """Write as JSON that carries its own checksum."""
        number = {file.name: index for index, file in enumerate(self.files)}
        body: dict[str, Any] = {
            "format": FORMAT,
            "step": self.step,
            "world_size": self.world_size,
            "run_id": self.run_id,
            "files": [{"name": file.name, "size": file.size, "sha256": file.sha256} for file in self.files],
            # A large model on many ranks has a million windows: files by number, three integers a window
            "tensors": {
                name: {
                    "shape": list(stored.shape),
                    "numel": stored.numel,
                    "dtype": stored.dtype,
                    "windows": [[number[held.file], held.offset, held.length] for held in stored.held],
                }
                for name, stored in sorted(self.tensors.items())
            },
        }
        return json.dumps(body | {"checksum": _checksum(body)}) + "\n"

    @classmethod
    def from_text(cls, text: str) -> "Manifest":
        """Read and check.

        Raises:
            Damaged: It is not what `to_text` wrote.
            LaunchError: A newer onecurve wrote it.
        """
        try:
            body = json.loads(text)
            checksum = body.pop("checksum")
            if checksum != _checksum(body):
                raise Damaged("its checksum does not match")
            if body["format"] != FORMAT:
                raise LaunchError(
                    f"The checkpoint has format {body['format']}; this onecurve reads format {FORMAT}.",
                    fix="Update onecurve.",
                )
            return cls._from_body(body)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise Damaged(f"it is no manifest ({type(error).__name__}: {error})") from None

    @classmethod
    def _from_body(cls, body: dict[str, Any]) -> "Manifest":
        files = tuple(FileEntry(str(file["name"]), int(file["size"]), str(file["sha256"])) for file in body["files"])
        for file in files:
            if not _PLAIN_NAME.fullmatch(file.name):
                raise Damaged(f"it names a file outside the folder: {file.name!r}")
        tensors = {
            str(name): Stored(
                tuple(stored["shape"]),
                int(stored["numel"]),
                str(stored["dtype"]),
                tuple(StoredWindow(files[number].name, offset, length) for number, offset, length in stored["windows"]),
            )
            for name, stored in body["tensors"].items()
        }
        return cls(int(body["step"]), int(body["world_size"]), str(body["run_id"]), files, tensors)


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parse_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest.

    Raises:
        Damaged: There is none, or it is not whole.
        LaunchError: A newer onecurve wrote it.
    """
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Damaged(f"{MANIFEST} is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Damaged(f"{MANIFEST} cannot be read: {error}") from None
    try:
        return Manifest.from_text(text)
    except Damaged as error:
        raise Damaged(f"{MANIFEST}: {error}") from None


Contribution = tuple[tuple[str, int, str], list[tuple[str, int, tuple[int, ...], str, int, int]]]
"""What one rank wrote: its file (name, size, sha256), and its windows (tensor, numel, shape, dtype, offset, length)."""


def assemble(step: int, run_id: str, state: FileEntry, contributions: Iterable[Contribution]) -> Manifest:
    """Put together what the ranks wrote.

    Raises:
        Damaged: The windows of a tensor do not make up the whole, or ranks disagree on what it is.
    """
    files: list[FileEntry] = []
    kinds: dict[str, tuple[tuple[int, ...], int, str]] = {}
    windows: dict[str, list[StoredWindow]] = {}
    for (name, size, sha256), held in contributions:
        files.append(FileEntry(name, size, sha256))
        for tensor, numel, shape, dtype, offset, length in held:
            kind = (tuple(shape), numel, dtype)
            if prod(shape) != numel:
                raise Damaged(f"{tensor}: {numel} elements are not of shape {tuple(shape)}")
            if kinds.setdefault(tensor, kind) != kind:
                raise Damaged(f"ranks disagree on {tensor}: {kinds[tensor]} and {kind}")
            windows.setdefault(tensor, []).extend([StoredWindow(name, offset, length)] if length else [])
    tensors = {
        tensor: Stored(*kind, tuple(sorted(windows[tensor], key=lambda held: held.offset)))
        for tensor, kind in kinds.items()
    }
    for tensor, stored in tensors.items():
        if problem := stored.problem():
            raise Damaged(f"{tensor}: {problem}")
    return Manifest(step, len(files), run_id, (*files, state), tensors)
