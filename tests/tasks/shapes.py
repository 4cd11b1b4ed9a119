"""Rows with images, masks and objects, made by the script that the recipes use, and what reads them."""

import sys
from hashlib import blake2b
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

_SCRIPT = Path(__file__).parents[2] / "recipes" / "data" / "make_shapes.py"


def shapes() -> Any:
    """The script, as a module."""
    if "shapes_script" not in sys.modules:
        spec = spec_from_file_location("shapes_script", _SCRIPT)
        assert spec and spec.loader
        sys.modules[spec.name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[spec.name])
    return sys.modules["shapes_script"]


def media(path: Path) -> dict[str, str]:
    """A file as the data layer hands it to a task."""
    return {"path": str(path), "digest": blake2b(path.read_bytes(), digest_size=16).hexdigest()}


def write_rows(folder: Path, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Write images and masks, the first ones of other sizes than the rest."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        image, mask, objects = shapes().draw(rng, 64 + 8 * (number % 3))
        image.save(folder / f"{number}.png")
        mask.save(folder / f"{number}-mask.png")
        files = {"image": media(folder / f"{number}.png"), "mask": media(folder / f"{number}-mask.png")}
        rows.append(files | {"objects": objects})
    return rows


_MEDIA = Path(__file__).parents[1] / "media"
_OBJECTS = [
    {"bbox": [[4, 12, 21, 21]], "category": ["circle"]},
    {"bbox": [[17, 12, 13, 13], [28, 35, 19, 19]], "category": ["triangle", "circle"]},
    {"bbox": [[11, 4, 18, 18], [32, 24, 13, 13], [4, 24, 23, 23]], "category": ["square", "circle", "triangle"]},
    {"bbox": [[29, 23, 21, 21], [5, 33, 21, 21]], "category": ["triangle", "circle"]},
]
ROWS = [
    {
        "image": media(_MEDIA / f"shapes-{number}.png"),
        "mask": media(_MEDIA / f"shapes-{number}-mask.png"),
        "objects": objects,
    }
    for number, objects in enumerate(_OBJECTS)
]
"""Four small images of two sizes."""


def rows_of(*columns: str) -> list[dict[str, Any]]:
    return [{name: row[name] for name in columns} for row in ROWS]


def reading(processor: Any, config: Any = None) -> Any:
    return SimpleNamespace(processor=processor, config=config, labels=[], max_length=100)


def as_batch(task: Any, read: Any, examples: list[Any], training: bool = True, seed: int = 0) -> dict[str, Any]:
    """Collate what the loader would."""
    moved = [
        task.transform(example, np.random.default_rng([seed, number]), training, read)
        for number, example in enumerate(examples)
    ]
    return task.collate(moved, read)
