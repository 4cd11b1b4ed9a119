"""The folder names in checkpoints/: complete steps, leftovers of crashes, and renamed folders."""

import errno
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from onecurve.machine.atomic_write import write_atomically
from onecurve.machine.latest import LATEST

INCOMPLETE, TRASH, REPLACED, BAD, SUPERSEDED = ".incomplete", ".trash", ".replaced", ".bad", ".superseded"
MANIFEST, STATE = "manifest.json", "state.json"

_STEP = re.compile(r"step-(\d{8,})")


def folder_name(step: int) -> str:
    """Name a step's folder."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """Read the step from a complete checkpoint's name; None for any other name."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def steps(root: Path) -> list[int]:
    """List the steps that have a folder, oldest first; by number, because clocks and copies change times.

    A link to a folder counts: someone moved the checkpoint to another disk.
    """
    if not root.is_dir():
        return []
    found = (step_of(entry.name) for entry in root.iterdir() if entry.is_dir())
    return sorted(step for step in found if step is not None)


def clear_leftovers(root: Path) -> list[str]:
    """Remove what a killed process left half-made or half-deleted; return the names, oldest step first."""
    cleared = []
    for entry in sorted(root.iterdir()) if root.is_dir() else ():
        stem, suffix = entry.name.removesuffix(entry.suffix), entry.suffix
        ours = step_of(stem) is not None or stem == LATEST
        if not ours or suffix not in (INCOMPLETE, TRASH, REPLACED):
            continue
        if suffix == REPLACED and not (root / stem).exists():
            os.rename(entry, root / stem)  # killed between two renames: the old one is still the good one
        elif entry.is_dir() and not entry.is_symlink():
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
    moved = [set_aside(root / folder_name(later), SUPERSEDED) for later in steps(root) if later > step]
    point_to_newest(root)
    return moved


def overtaken(root: Path, step: int) -> list[Path]:
    """List what `supersede` set aside and the run, saved at `step`, has trained again since."""
    aside = ((entry, entry.name.partition(SUPERSEDED)) for entry in root.iterdir() if entry.is_dir())
    found = ((entry, step_of(name)) for entry, (name, suffix, _) in aside if suffix)
    return [entry for entry, of in found if of is not None and of <= step]


def point_to_newest(root: Path) -> None:
    """Have `latest` name the newest complete checkpoint, after one was renamed; remove it where there is none."""
    complete = [step for step in steps(root) if (root / folder_name(step) / MANIFEST).is_file()]
    if complete:
        write_atomically(root / LATEST, folder_name(complete[-1]) + "\n")
    else:
        with suppress(FileNotFoundError, NotADirectoryError):  # what stands in its way is told when something is saved
            (root / LATEST).unlink()


def remove(folder: Path) -> None:
    """Delete a checkpoint so that no moment shows a part of it under its name."""
    trash = folder.with_name(folder.name + TRASH)
    clear(trash)
    os.rename(folder, trash)
    clear(trash)


def clear(folder: Path) -> None:
    """Delete a folder, or a link to one and not what it leads to.

    What is left of it, as on NFS where an open file keeps its folder alive, is cleared by the next start.
    """
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, on a disk that can: FUSE, CIFS and object stores may refuse."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
            raise
    finally:
        os.close(descriptor)
