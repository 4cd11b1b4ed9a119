import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onecurve.config import DataSection
from onecurve.content.media import media_digest, read_media
from onecurve.data.cache_listing import entries, prune
from onecurve.data.rows import Broken, Located
from onecurve.data.sources import Source, open_source
from onecurve.errors import ConfigError, DataError, UserError

COLUMNS = {"image": "an image", "label": "its label"}
MEDIA = {"image": "image"}


def pixels(value: int) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(file, "png")
    return file.getvalue()


def write(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pixels(value))
    return path


def write_lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def source(spec: Path | str, key: str = "data.train", media: dict[str, str] = MEDIA, **settings: Any) -> Source:
    return open_source(key, str(spec), DataSection(train="x", **settings), COLUMNS, media=media)


def rows(spec: Path | str, **settings: Any) -> list[dict[str, Any]]:
    found = list(source(spec, **settings).rows())
    assert all(isinstance(one, Located) for one in found), found
    return [one.row for one in found if isinstance(one, Located)]


def test_a_path_is_relative_to_the_file_that_holds_it_and_comes_with_a_hash(tmp_path: Path) -> None:
    image, other = write(tmp_path / "files/a.png", 1), write(tmp_path / "b.png", 2)
    table = tmp_path / "lists"
    table.mkdir()
    listed = write_lines(
        table / "rows.jsonl",
        {"image": "../files/a.png", "label": "x"},
        {"image": str(other), "label": "y"},
        {"image": {"path": "../b.png", "bytes": None}, "label": "z"},
    )
    found = rows(listed)
    assert [one["image"]["digest"] for one in found] == [media_digest(pixels(value)) for value in (1, 2, 2)]
    assert read_media(found[0]["image"]) == image.read_bytes()
    assert [one["label"] for one in found] == ["x", "y", "z"]


def test_bytes_are_kept_once_in_the_cache_which_pruning_leaves_alone(tmp_path: Path) -> None:
    import datasets

    values = [{"bytes": pixels(value), "path": "a.png"} for value in (1, 1, 2)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    saved = datasets.Dataset.from_dict({"image": values, "label": ["x", "y", "z"]}, features)
    saved.save_to_disk(tmp_path / "saved")
    saved.to_parquet(tmp_path / "rows.parquet")
    cache = tmp_path / "cache"
    for spec in ("saved", "rows.parquet"):
        found = rows(tmp_path / spec, cache_dir=str(cache))
        assert [read_media(one["image"]) for one in found] == [pixels(value) for value in (1, 1, 2)]
    assert len([path for path in cache.rglob("*") if path.is_file()]) == 2
    assert entries(cache) == list(prune(cache, 0, 0)) == []
    assert read_media(found[0]["image"])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("none.png", r"image: '.*/none.png' cannot be read: No such file"),
        (3, "image must be the path of an image file; got '3'"),
        ("https://example.org/a.png", "image is an address, https://example.org/a.png; download the file first"),
    ],
)
def test_what_is_no_file_is_a_broken_row(tmp_path: Path, value: Any, said: str) -> None:
    listed = write_lines(tmp_path / "rows.jsonl", {"image": value, "label": "x"})
    (found,) = source(listed).rows()
    assert isinstance(found, Broken) and found.place == f"{listed}, line 1"
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(found.reason)


def test_a_file_that_changes_or_goes_is_noticed_when_it_is_read(tmp_path: Path) -> None:
    (image,) = (one["image"] for one in rows(write(tmp_path / "cat/a.png", 1).parents[1]))
    write(tmp_path / "cat/a.png", 2)
    with pytest.raises(DataError, match=r"a.png: has changed since the data were read"):
        read_media(image)
    (tmp_path / "cat/a.png").unlink()
    with pytest.raises(DataError, match=r"a.png: cannot be read: No such file"):
        read_media(image)


def labels(spec: Path | str, **settings: Any) -> list[tuple[str, str]]:
    return [(Path(one["image"]["path"]).name, one.get("label", "")) for one in rows(spec, **settings)]


def test_a_folder_of_files_is_labelled_by_its_folders(tmp_path: Path) -> None:
    for name in ("dog/b.png", "cat/a.PNG", "cat/deep/c.jpg", "notes.txt"):
        write(tmp_path / name, 1)
    assert labels(tmp_path) == [("a.PNG", "cat"), ("c.jpg", "deep"), ("b.png", "dog")]
    assert source(tmp_path).reads == {"format"}
    with pytest.raises(UserError, match=r"has no column|there is no column 'label'"):
        rows(write(tmp_path / "plain/x.png", 1).parent)


def test_folders_named_for_splits_are_splits(tmp_path: Path) -> None:
    for name in ("train/cat/a.png", "train/dog/b.png", "val/cat/c.png", "test/dog/d.png"):
        write(tmp_path / name, 1)
    assert labels(tmp_path) == [("a.png", "cat"), ("b.png", "dog")]
    assert labels(tmp_path, key="data.eval") == [("c.png", "cat")]
    assert labels(f"{tmp_path}:test") == [("d.png", "dog")]
    assert labels(tmp_path / "val") == [("c.png", "cat")]
    with pytest.raises(ConfigError, match=r"no folder for the split 'other'; it has test, train, val"):
        rows(f"{tmp_path}:other")


def test_a_table_beside_the_files_goes_before_them_unless_the_recipe_says_media(tmp_path: Path) -> None:
    write(tmp_path / "cat/a.png", 1)
    write_lines(tmp_path / "metadata.jsonl", {"image": "cat/a.png", "label": "from the table"})
    assert labels(tmp_path) == [("a.png", "from the table")]
    assert labels(tmp_path, format="media") == [("a.png", "cat")]


def test_media_is_refused_where_it_cannot_be(tmp_path: Path) -> None:
    write(tmp_path / "cat/a.png", 1)
    with pytest.raises(ConfigError, match=r"data.format: media is a folder .*; this task reads 0 files a row"):
        source(tmp_path, media={}, format="media")
    with pytest.raises(ConfigError, match=r"has no audio files \(\.aif, "):
        source(tmp_path, media={"image": "audio"}, format="media")


def test_the_stamp_of_a_folder_tells_of_every_file_and_its_digest_of_every_name(tmp_path: Path) -> None:
    write(tmp_path / "cat/a.png", 1)
    before = source(tmp_path)
    stamp, digest = before.stamp(), before.digest()
    write(tmp_path / "cat/a.png", 2)
    assert source(tmp_path).stamp() != stamp and source(tmp_path).digest() == digest
    write(tmp_path / "dog/b.png", 2)
    assert source(tmp_path).digest() != digest


def test_only_rows_that_are_chosen_are_read(tmp_path: Path) -> None:
    from onecurve.data.selection import Selection

    for number in range(10):
        write(tmp_path / f"cat/{number}.png", number)
    settings = DataSection(train=str(tmp_path), max_samples=3)
    chosen = replace(source(tmp_path), selection=Selection.of("train", settings, 1))
    (tmp_path / "cat/0.png").write_bytes(b"changed")
    assert len(list(chosen.rows())) == 3
