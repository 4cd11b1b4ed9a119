"""Verifies a checkpoint: files, hashes, coverage, values."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from onecurve.checkpoint.folders import STATE, step_of
from onecurve.checkpoint.manifest import Damaged, FileEntry, Manifest, parse_manifest
from onecurve.checkpoint.peers import Alone, Peers, on_first_rank
from onecurve.checkpoint.staging import file_sha256, window_key
from onecurve.checkpoint.tensors import dtype_name, is_finite
from onecurve.errors import UserError


def verify(folder: Path) -> list[str]:
    """List what is wrong with a checkpoint; empty when it is good.

    Every file is read: sizes, hashes, where each window lies, that no value is NaN or infinite.
    """
    try:
        return check(folder, Alone())
    except UserError as error:
        return [str(error)]


def check(folder: Path, peers: Peers) -> list[str]:
    """Do what `verify` does, each rank reading its share of the files; every rank gets the same list.

    Raises:
        LaunchError: A newer onecurve wrote it: no problem of the checkpoint's.
    """
    problems = on_first_rank(peers, lambda: _structure(folder))
    if not problems:
        found = peers.gather(_contents(folder, peers.rank, peers.world_size))
        problems = [problem for share in found for problem in share]
    return list(problems)


def _structure(folder: Path) -> list[str]:
    """What the manifest and the files' sizes tell, without reading tensors."""
    try:
        manifest = parse_manifest(folder)
    except Damaged as error:
        return [str(error)]
    problems = []
    named = step_of(folder.name)
    if named is not None and named != manifest.step:
        problems.append(f"the manifest is of step {manifest.step}")
    if STATE not in {file.name for file in manifest.files}:
        problems.append(f"the manifest does not name {STATE}")
    problems += [problem for file in manifest.files if (problem := _size_problem(folder, file))]
    problems += [f"{name}: {problem}" for name, stored in manifest.tensors.items() if (problem := stored.problem())]
    return problems


def _size_problem(folder: Path, file: FileEntry) -> str:
    path = folder / file.name
    if path.is_symlink() or not path.is_file():
        return f"{file.name} is missing"
    size = path.stat().st_size
    return "" if size == file.size else f"{file.name} has {size} bytes instead of {file.size}"


def _contents(folder: Path, rank: int, world_size: int) -> list[str]:
    """Read this rank's share of the files; an error of the disk is a problem like any other."""
    try:
        manifest = parse_manifest(folder)
    except Damaged as error:
        return [f"{error} (seen by rank {rank})"]
    windows = _windows_by_file(manifest)
    problems = []
    for file in manifest.files[rank::world_size]:
        path = folder / file.name
        try:
            if file_sha256(path) != file.sha256:
                problems.append(f"{file.name} does not hash to what was written")
            elif file.name != STATE:
                problems += [f"{file.name}: {problem}" for problem in _window_problems(path, windows[file.name])]
        except (OSError, SafetensorError) as error:
            problems.append(f"{file.name} cannot be read: {error}")
    return problems


def _windows_by_file(manifest: Manifest) -> dict[str, list[tuple[str, str, int]]]:
    """What each file must hold: key, dtype, length."""
    windows: dict[str, list[tuple[str, str, int]]] = {file.name: [] for file in manifest.files}
    for name, stored in manifest.tensors.items():
        for held in stored.held:
            windows[held.file].append((window_key(name, held.offset), stored.dtype, held.length))
    return windows


def _window_problems(path: Path, windows: list[tuple[str, str, int]]) -> Iterator[str]:
    with safe_open(path, framework="pt") as opened:
        keys = set(opened.keys())
        for key, dtype, length in windows:
            if key in keys:
                yield from _value_problems(key, opened.get_tensor(key), dtype, length)
            else:
                yield f"{key} is not in it"


def _value_problems(key: str, values: torch.Tensor, dtype: str, length: int) -> Iterator[str]:
    if dtype_name(values.dtype) != dtype or values.shape != (length,):
        yield f"{key} is {dtype_name(values.dtype)} of {values.numel()} elements, not {dtype} of {length}"
    elif not is_finite(values):
        yield f"{key} is not finite"
