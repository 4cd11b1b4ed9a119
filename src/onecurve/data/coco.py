"""Rows of a file in COCO's format: images, annotations and categories in one JSON object (cocodataset.org)."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onecurve.data.rows import Broken, Located
from onecurve.errors import DataError

_PREFIX = "instances_"
"""Of COCO's own files: annotations/instances_val2017.json is of the images in val2017/."""


def is_coco(content: Any) -> bool:
    """Whether a JSON file's content has the lists of COCO's format."""
    return isinstance(content, Mapping) and all(isinstance(content.get(key), list) for key in ("images", "annotations"))


def coco_rows(content: Mapping[str, Any], path: Path) -> Iterator[Located | Broken]:
    """Yield a row for each image, in the order of the file: `image`, its path, and `objects`, a list of them.

    Images lie in the file's folder, in `images` beside it, or in the folder that COCO's own files are named after,
    beside it or one folder up: where the first one is.

    Raises:
        DataError: An annotation of no image, or an image without id or file.
    """
    names = {one.get("id"): one.get("name") for one in content.get("categories") or [] if isinstance(one, Mapping)}
    images = [one if isinstance(one, Mapping) else {} for one in content["images"]]
    for number, image in enumerate(images):
        if "id" not in image or not isinstance(image.get("file_name"), str):
            raise DataError(f"images[{number}] has no id or no file_name.", where=str(path))
    objects: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    known = {image["id"] for image in images}
    for number, one in enumerate(content["annotations"]):
        if not isinstance(one, Mapping) or one.get("image_id") not in known:
            raise DataError(f"annotations[{number}] is of no image in this file.", where=str(path))
        category = one.get("category_id")
        found = {"bbox": one.get("bbox"), "category": names.get(category, category), "iscrowd": one.get("iscrowd", 0)}
        objects[one["image_id"]].append(found)
    folder = _folder(path, images[0]["file_name"]) if images else path.parent
    for number, image in enumerate(images, 1):
        row = {"image": str(folder / image["file_name"]), "objects": objects[image["id"]]}
        yield Located(f"image {number} (id {image['id']})", row)


def _folder(path: Path, first: str) -> Path:
    here, split = path.absolute().parent, path.stem.removeprefix(_PREFIX)
    places = [here, here / "images", here / split, here.parent / split, here.parent / "images"]
    return next((place for place in places if (place / first).is_file()), here)
