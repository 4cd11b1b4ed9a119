"""The folder names in checkpoints/: complete steps, leftovers of crashes, and renamed folders."""

import os
import re
import shutil
from pathlib import Path

INCOMPLETE, TRASH, REPLACED, BAD, SUPERSEDED = ".incomplete", ".trash", ".replaced", ".bad", ".superseded"
MANIFEST, STATE, LATEST = "manifest.json", "state.json", "latest"

_STEP = re.compile(r"step-(\d{8,})")


def folder_name(step: int) -> str:
    """Name a step's folder."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """Read the step from a complete checkpoint's name; None for any other name."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def steps(root: Path) -> list[int]:
    """List the steps that have a folder, oldest first; by number, because clocks and copies change times."""
    if not root.is_dir():
        return []
    found = (step_of(entry.name) for entry in root.iterdir() if entry.is_dir() and not entry.is_symlink())
    return sorted(step for step in found if step is not None)


def clear_leftovers(root: Path) -> list[str]:
    """Remove what a killed process left half-made or half-deleted; return the names, oldest step first."""
    cleared = []
    for entry in sorted(root.iterdir()) if root.is_dir() else ():
        stem, suffix = entry.name.removesuffix(entry.suffix), entry.suffix
        ours = step_of(stem) is not None or stem == LATEST
        if entry.is_symlink() or not ours or suffix not in (INCOMPLETE, TRASH, REPLACED):
            continue
        if suffix == REPLACED and not (root / stem).exists():
            os.rename(entry, root / stem)  # killed between two renames: the old one is still the good one
        elif entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
        cleared.append(entry.name)
    return cleared


def set_aside(folder: Path, suffix: str) -> str:
    """Rename a folder so that it is no checkpoint any more; return the new name."""
    target, number = folder.with_name(folder.name + suffix), 1
    while target.exists():
        number += 1
        target = folder.with_name(f"{folder.name}{suffix}{number}")
    os.rename(folder, target)
    return target.name


def supersede(root: Path, step: int) -> list[str]:
    """Set aside what is newer than the step a run goes back to: those steps are about to be trained anew.

    Call on one rank. Otherwise the next start would find the abandoned future, and retention keep it.
    """
    return [set_aside(root / folder_name(later), SUPERSEDED) for later in steps(root) if later > step]


def remove(folder: Path) -> None:
    """Delete a checkpoint so that no moment shows a part of it under its name."""
    trash = folder.with_name(folder.name + TRASH)
    shutil.rmtree(trash, ignore_errors=True)
    os.rename(folder, trash)
    # On NFS an open file keeps its folder alive; the next start clears it
    shutil.rmtree(trash, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
