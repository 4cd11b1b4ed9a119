"""Writes a data set of digits spoken by espeak-ng in several voices: clips, and lists of them for training and scoring.

    python benchmarks/spoken_digits.py FOLDER [--train 600] [--dev 100]

Voices of the dev split do not speak in the training split. espeak-ng must be installed (`apt-get install espeak-ng`).
"""

import argparse
import csv
import random
import shutil
import subprocess
import sys
from pathlib import Path

WORDS = "zero one two three four five six seven eight nine".split()
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-029")
SPEAKERS = {"train": ("m1", "m2", "m3", "m5", "f1", "f2", "f4"), "dev": ("m4", "f3")}


def main(argv: list[str]) -> int:
    """Write the clips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=600, help="clips to train on")
    parser.add_argument("--dev", type=int, default=100, help="clips to score")
    asked = parser.parse_args(argv)
    if shutil.which("espeak-ng") is None:
        print("spoken_digits.py: espeak-ng is not installed: apt-get install espeak-ng", file=sys.stderr)
        return 2
    draws = random.Random(0)
    for split, count in (("train", asked.train), ("dev", asked.dev)):
        (asked.folder / split).mkdir(parents=True, exist_ok=True)
        with open(asked.folder / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow(["audio", "text", "voice"])
            for number in range(count):
                text = " ".join(draws.choices(WORDS, k=draws.randint(1, 3)))
                voice = f"{draws.choice(ACCENTS)}+{draws.choice(SPEAKERS[split])}"
                name = f"{split}/{number:04}.wav"
                manner = ["-s", str(draws.randint(130, 190)), "-p", str(draws.randint(30, 70))]
                subprocess.run(["espeak-ng", "-v", voice, *manner, "-w", str(asked.folder / name), text], check=True)
                lines.writerow([name, text, voice])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
