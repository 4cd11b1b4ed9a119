"""Hashes a config and samples of the weight files, to detect within milliseconds that a frozen model has changed."""

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from onecurve.adapters.folder import Continued, described_in, is_adapter
from onecurve.config import ModelSection
from onecurve.tasks.base import OtherModel

_SUFFIXES = (".safetensors", ".bin")
_BLOCK, _BLOCKS = 2**16, 64
_UNTOLD = {"architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
"""What a config says that does not change what its model computes, or that the precision says already."""


def weights_identity(section: ModelSection) -> str:
    """Hash the names and sizes of a model's weight files and 64 evenly spread blocks of 64 KiB of each.

    Training changes nearly every value, so other weights differ in those blocks; reading all of a large model would
    cost minutes at every start.

    Returns:
        Hexadecimal; empty where the model has no files, because it is drawn from the seed.
    """
    if section.init == "random":
        return ""
    of_base = ""
    if is_adapter(section.path):  # of the base too, which need not be linked to
        continued = Continued.read(section.path)
        of_base = weights_identity(section.model_copy(update={"path": continued.base, "revision": continued.revision}))
    return _digest(_folder(section), of_base)


def _digest(folder: Path, before: str) -> str:
    digest = blake2b(before.encode(), digest_size=16)
    for path in sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES):
        size = path.stat().st_size
        digest.update(f"{path.name}\x1f{size}\x1e".encode())
        with open(path, "rb") as file:
            for number in range(_BLOCKS):
                file.seek(max(0, size - _BLOCK) * number // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def told_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config says of what its model computes."""
    return {name: value for name, value in config.items() if name[0] != "_" and name not in _UNTOLD}


def _config_digest(folder: Path) -> str:
    """Hash what a folder's config says; empty where there is none that can be read, which is told on loading it."""
    try:
        told = told_of(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, IndexError):
        return ""
    return blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=16).hexdigest()


def other_identity(other: OtherModel) -> str:
    """Return what tells another model from others: its weights and its config.

    Of a hub's, which may not be here yet, it is their commit.
    """
    folder = Path(other.path).expanduser()
    if is_adapter(other.path):
        continued = Continued.read(other.path)
        base = other_identity(OtherModel(continued.base, continued.revision, other.key))
        method = json.dumps([continued.method, continued.settings], sort_keys=True)
        return f"{_digest(folder, method + _config_digest(described_in(folder)))} on {base}"
    if folder.is_dir():
        return _digest(folder, _config_digest(folder))
    from huggingface_hub import snapshot_download

    found = snapshot_download(other.path, revision=other.revision or "main", allow_patterns=["config.json"])
    return f"{other.path}@{Path(found).name}"


def _folder(section: ModelSection) -> Path:
    local = Path(section.path).expanduser()
    if local.is_dir():
        return local
    from huggingface_hub import snapshot_download

    patterns = [f"*{suffix}" for suffix in _SUFFIXES]
    revision = section.revision or None
    return Path(snapshot_download(section.path, revision=revision, allow_patterns=patterns, local_files_only=True))
