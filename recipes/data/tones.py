"""Writes recipes/data/tones: clips of digits as telephones dial them, played by three instruments, for the recipes.

    python recipes/data/tones.py

A clip has one to three digits, each the sum of two tones (ITU-T Q.23), with a short pause after it.
FLAC of 8 bits at 8 kHz.
"""

import csv
from pathlib import Path

import numpy as np
import soundfile

RATE = 8000
ROWS, COLUMNS = (697, 770, 852, 941), (1209, 1336, 1477)
PLACES = {digit: divmod(place, 3) for place, digit in enumerate("123456789*0#")}
WAVES = {
    "flute": np.sin,
    "organ": lambda phase: np.sign(np.sin(phase)),
    "bell": lambda phase: np.sin(phase) * np.exp(-phase / 400),
}


def sound(digits: str, instrument: str, rng: np.random.Generator) -> np.ndarray:
    """Return the samples of a clip, in [-1, 1]."""
    parts = [np.zeros(int(rng.integers(80, 240)))]
    for digit in digits:
        row, column = PLACES[digit]
        time = np.arange(int(rng.integers(640, 960))) / RATE
        wave = sum(WAVES[instrument](2 * np.pi * hertz * time) for hertz in (ROWS[row], COLUMNS[column]))
        parts += [wave * rng.uniform(0.2, 0.4), np.zeros(int(rng.integers(160, 320)))]
    samples = np.concatenate(parts)
    return samples + rng.normal(0, 0.01, len(samples))


def main() -> None:
    """Write the clips and the two lists of them."""
    rng, here = np.random.default_rng(0), Path(__file__).parent
    (here / "tones").mkdir(exist_ok=True)
    for split, count in (("train", 72), ("dev", 18)):
        with open(here / f"tones-{split}.csv", "w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow(["audio", "text", "instrument"])
            for number in range(count):
                instrument = list(WAVES)[number % 3]
                text = "".join(rng.choice(list("0123456789"), int(rng.integers(1, 4))))
                name = f"tones/{split}-{number:02}.flac"
                soundfile.write(here / name, sound(text, instrument, rng), RATE, subtype="PCM_S8")
                lines.writerow([name, text, instrument])


if __name__ == "__main__":
    main()
