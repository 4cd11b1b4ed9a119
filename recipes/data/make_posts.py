"""Writes posts-train.csv and posts-dev.csv: posts on invented companies, made of patterns, with the mood of each."""

import csv
import random
from pathlib import Path

NAMES = "Curavela Brennoco Tillmar Ostervik Pallanto Quillfen Marrowby Zephlin Dorrance Inkwell".split()
PATTERNS = {
    "positive": ["{} up again today, love it", "huge quarter for {}!", "{} beats everyone this year", "buying more {}"],
    "negative": ["{} down again today", "awful quarter for {}", "{} loses to everyone this year", "dumping my {}"],
    "neutral": ["{} reports on Thursday", "who runs {} these days?", "reading the annual report of {}"],
}


def main() -> None:
    """Write both files: of each pattern most names to train on, the others to score."""
    draw = random.Random(0)
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "dev": []}
    for mood, patterns in PATTERNS.items():
        for pattern in patterns:
            for place, name in enumerate(draw.sample(NAMES, len(NAMES))):
                rows["dev" if place < 2 else "train"].append((pattern.format(name), mood))
    for split, posts in rows.items():
        with open(Path(__file__).parent / f"posts-{split}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("body", "mood"), *draw.sample(posts, len(posts))])


if __name__ == "__main__":
    main()
