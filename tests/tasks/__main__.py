"""Writes docs/tasks.md: `python -m tests.tasks docs/tasks.md`."""

import os
import sys
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1")

from tests.tasks.table import tables

if __name__ == "__main__":
    Path(sys.argv[1]).write_text(tables(), encoding="utf-8")
