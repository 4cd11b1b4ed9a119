"""Writes images of circles, squares and triangles on noise, with their masks and boxes.

Usage: python recipes/data/make_shapes.py [FOLDER]     (default: shapes/ beside this file)

Each image lies beside its mask (0 background, 1 circle, 2 square, 3 triangle); train.jsonl and dev.jsonl have a row an
image, with the columns image, mask and objects. The same files each time. Needs Pillow (pip install pillow).
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

LABELS = ("background", "circle", "square", "triangle")
_SIZE = 64
_TRIES = 20
_LEAST, _MOST = 12, 28


def draw(rng: np.random.Generator, size: int = _SIZE) -> tuple[Image.Image, Image.Image, dict[str, list[Any]]]:
    """Draw an image with one to three shapes that do not touch, its mask, and its objects: boxes [x, y, w, h]."""
    noise = rng.integers(0, 120, (size, size, 3), dtype=np.uint8)
    image, mask = Image.fromarray(noise), Image.new("L", (size, size))
    boxes: list[list[int]] = []
    names: list[str] = []
    for _ in range(int(rng.integers(1, 4))):
        if box := _free_place(rng, size, boxes):
            kind = int(rng.integers(1, len(LABELS)))
            _paint(image, kind, box, tuple(rng.integers(130, 256, 3).tolist()))
            _paint(mask, kind, box, kind)
            boxes.append(box)
            names.append(LABELS[kind])
    return image, mask, {"bbox": boxes, "category": names}


def _free_place(rng: np.random.Generator, size: int, taken: list[list[int]]) -> list[int] | None:
    for _ in range(_TRIES):
        side = int(rng.integers(_LEAST, _MOST + 1))
        x, y = rng.integers(0, size - side + 1, 2).tolist()
        if all(x >= a + w or a >= x + side or y >= b + h or b >= y + side for a, b, w, h in taken):
            return [x, y, side, side]
    return None


def _paint(image: Image.Image, kind: int, box: list[int], colour: Any) -> None:
    x, y, width, height = box
    right, bottom, pen = x + width - 1, y + height - 1, ImageDraw.Draw(image)
    if kind == 1:
        pen.ellipse((x, y, right, bottom), fill=colour)
    elif kind == 2:
        pen.rectangle((x, y, right, bottom), fill=colour)
    else:
        pen.polygon([(x, bottom), (right, bottom), (x + width // 2, y)], fill=colour)


def write(folder: Path, split: str, count: int, seed: int) -> None:
    """Write images, masks and rows of one split."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        image, mask, objects = draw(rng)
        names = {"image": f"{split}/{number:04}.png", "mask": f"{split}/{number:04}-mask.png"}
        image.save(folder / names["image"])
        mask.save(folder / names["mask"])
        rows.append(names | {"objects": objects})
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "shapes"
    write(target, "train", 480, seed=1)
    write(target, "dev", 96, seed=2)
