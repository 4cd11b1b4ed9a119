import json
from pathlib import Path
from typing import Any

import pytest

from onecurve.config import DataSection
from onecurve.data.sources import open_source
from onecurve.errors import DataError

COLUMNS = {"image": "", "objects": ""}
CONTENT = {
    "images": [{"id": 7, "file_name": "a.png"}, {"id": 9, "file_name": "b.png"}],
    "annotations": [{"image_id": 9, "category_id": 3, "bbox": [1, 2, 3, 4], "area": 12, "id": 1}],
    "categories": [{"id": 3, "name": "cup"}],
}


def _rows(path: Path, content: Any) -> list[Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return list(open_source("data.train", str(path), DataSection(train=str(path)), COLUMNS).rows())


@pytest.mark.parametrize(
    ("file", "folder"),
    [("a.json", "."), ("a.json", "images"), ("annotations/instances_val2017.json", "val2017"), ("x/val.json", "x/val")],
)
def test_a_row_an_image_with_its_objects_and_the_folder_where_it_lies(tmp_path: Path, file: str, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / folder / "a.png").write_bytes(b"")
    first, second = _rows(tmp_path / file, CONTENT)
    assert Path(first.row["image"]).resolve() == (tmp_path / folder / "a.png").resolve()
    assert first.row["objects"] == [] and first.place.endswith("image 1 (id 7)")
    assert second.row["objects"] == [{"bbox": [1, 2, 3, 4], "category": "cup", "iscrowd": 0}]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"images": [{"id": 7}]}, r"images\[0\] has no id or no file_name"),
        ({"annotations": [{"image_id": 1}]}, r"annotations\[0\] is of no image"),
    ],
)
def test_what_belongs_to_nothing_is_told(tmp_path: Path, changed: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        _rows(tmp_path / "a.json", CONTENT | changed)
