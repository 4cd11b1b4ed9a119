"""Add a correction: `correct.py "Toll climbs as fever sweeps Ashdown" --topic health --sentiment negative`."""

import argparse
import sys
from datetime import datetime, timezone
from pathlib import Path

from corrections import HEADS, Mistake, append, labels_of

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("headline")
    for head in HEADS:
        parser.add_argument(f"--{head}", help="the right one; absent: nothing is said of it")
    parser.add_argument("--run", type=Path, default=Path("runs/news_monitor"), help="the monitor's folder")
    given = parser.parse_args()
    row = {"time": datetime.now(timezone.utc).isoformat(timespec="seconds"), "headline": given.headline}
    row |= {head: getattr(given, head) for head in HEADS if getattr(given, head) is not None}
    try:
        append(given.run / "corrections.jsonl", [row], labels_of(given.run / "current"))
    except Mistake as mistake:
        print(f"correct.py: {mistake}", file=sys.stderr)
        sys.exit(2)
