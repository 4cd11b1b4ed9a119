"""Tries every family and writes docs/models.md: `python -m tests.zoo docs/models.md` (ten minutes)."""

import os
import sys
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

from tests.zoo.table import write_tables

if __name__ == "__main__":
    write_tables(Path(sys.argv[1]))
