"""Started by a launcher in place of train.py: writes down the environment that it gives each rank."""

import json
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    rank = os.environ.get("RANK", "0")
    (Path(sys.argv[1]) / f"rank-{rank}.json").write_text(json.dumps(dict(os.environ)))
