"""Hashes samples of the weight files, to detect within milliseconds that frozen weights have changed."""

from hashlib import blake2b
from pathlib import Path

from onecurve.adapters.folder import Continued, is_adapter
from onecurve.config import ModelSection
from onecurve.tasks.base import OtherModel

_SUFFIXES = (".safetensors", ".bin")
_BLOCK, _BLOCKS = 2**16, 64


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


def other_identity(other: OtherModel) -> str:
    """Return what tells another model's weights from others; of a hub's, which may not be here yet, their commit."""
    if is_adapter(other.path):
        continued = Continued.read(other.path)
        base = other_identity(OtherModel(continued.base, continued.revision, other.key))
        return f"{_digest(Path(other.path).expanduser(), '')} on {base}"
    if Path(other.path).expanduser().is_dir():
        return weights_identity(ModelSection(path=other.path))
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
