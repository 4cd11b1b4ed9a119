"""Writes the handwritten digits of scikit-learn as PNG files, a folder a label: digits/{train,dev,test}/7/0123.png.

Usage: python recipes/data/make_digits.py [FOLDER]     (default: digits/ beside this file)

1,797 images of 8 x 8 pixels, which come with scikit-learn: nothing is fetched. Needs Pillow (pip install pillow).
"""

import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

DEV, TEST = 180, 360


def main(folder: Path) -> None:
    """Write the three splits; the same files each time."""
    digits = load_digits()
    numbers = list(range(len(digits.target)))
    rest, test = train_test_split(numbers, test_size=TEST, stratify=digits.target, random_state=0)
    train, dev = train_test_split(rest, test_size=DEV, stratify=digits.target[rest], random_state=0)
    for split, chosen in (("train", train), ("dev", dev), ("test", test)):
        for number in chosen:
            place = folder / split / str(digits.target[number])
            place.mkdir(parents=True, exist_ok=True)
            pixels = (digits.images[number] * 255 / 16).round().astype("uint8")
            Image.fromarray(pixels).save(place / f"{number:04d}.png")
        print(f"{folder / split}: {len(chosen)} images")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "digits")
