"""recipes/data: each file's origin is told."""

import re
from fnmatch import fnmatch

from tests.launching import ROOT

DATA = ROOT / "recipes" / "data"


def test_the_readme_names_every_file() -> None:
    named = re.findall(r"`([^`\s]+)`", (DATA / "README.md").read_text(encoding="utf-8"))
    files = [path for path in DATA.iterdir() if path.name not in ("README.md", "__pycache__")]
    there = [path.name + "/" * path.is_dir() for path in files]
    assert len(there) > 30 and "tones/" in there
    assert sorted(name for name in there if not any(fnmatch(name, pattern) for pattern in named)) == []
