"""The file `latest`, which names the newest complete folder beside it."""

from pathlib import Path

LATEST = "latest"


def follow(path: Path) -> Path:
    """Return the folder that a file `latest` names; any other path as it is."""
    try:
        name = path.read_text(encoding="utf-8").strip() if path.name == LATEST and path.is_file() else ""
    except (OSError, ValueError):
        return path
    return path.parent / name if name and Path(name).name == name else path
