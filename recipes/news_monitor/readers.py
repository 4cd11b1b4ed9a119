"""Play the readers, for the demonstration: correct each headline that the model got wrong before a date.

The stream's own labels stand in for what readers would say.
"""

import argparse
import json
import sys
from pathlib import Path

from corrections import HEADS, Mistake, append, labels_of, rows_of

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("predictions", type=Path, help="what onecurve predict --json --keep date headline wrote")
    parser.add_argument("--truth", type=Path, required=True, help="the same headlines, with the right labels")
    parser.add_argument("--before", required=True, metavar="DATE", help="readers have seen what is older")
    parser.add_argument("--run", type=Path, default=Path("runs/news_monitor"), help="the monitor's folder")
    given = parser.parse_args()
    with open(given.predictions, encoding="utf-8") as file:
        told = [*map(json.loads, file)]
    try:
        rows = {
            row["headline"]: {key: row[key] for key in ("date", "headline", *HEADS)}
            for row, said in zip(rows_of(given.truth), told, strict=True)
            if "error" not in said
            and row["date"] < given.before
            and any(said[head]["label"] != row[head] for head in HEADS)
        }
        number = append(given.run / "corrections.jsonl", rows.values(), labels_of(given.run / "current"))
    except Mistake as mistake:
        sys.exit(f"readers.py: {mistake}")
    print(f"{number} corrections added to {given.run / 'corrections.jsonl'}")
