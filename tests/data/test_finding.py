"""Data as hubs, `datasets` and people keep it: clones, saved datasets, parts of splits, lists and patterns."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onecurve.config import DataSection
from onecurve.data.rows import Located
from onecurve.data.sources import left_out_files, open_source
from onecurve.errors import ConfigError, DataError
from tests.data.hub_datasets import keep

COLUMNS = {"text": "a text"}
NAMES = ["negative", "positive"]


def texts(spec: str | list[str], key: str = "data.train", **settings: Any) -> list[str]:
    source = open_source(key, spec, DataSection(train="x", **settings), COLUMNS)
    return [row.row["text"] for row in source.rows() if isinstance(row, Located)]


def put(folder: Path, *names: str) -> Path:
    """Write files of one row, whose text is the file's name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(pa.table({"text": [name]}), path)
        else:
            path.write_text(json.dumps({"text": name}) + "\n")
    return folder


# A folder


CLONES = {
    "shards": ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
    "shards in data": ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
    "plain names": ["my_train.1.jsonl", "my_train.2.jsonl"],
    "folders": ["training/a.jsonl", "training/b.jsonl"],
}
OTHERS = {
    "shards": ["validation-00000-of-00001.parquet", "test-00000-of-00001.parquet"],
    "shards in data": ["data/validation-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"],
    "plain names": ["dev.jsonl", "Test.jsonl"],
    "folders": ["valid/c.jsonl", "test/d.jsonl"],
}


@pytest.mark.parametrize("layout", CLONES)
def test_a_clone_gives_each_setting_its_own_split(tmp_path: Path, layout: str) -> None:
    folder = put(tmp_path, *CLONES[layout], *OTHERS[layout])
    (folder / "README.md").write_text("# A dataset\n")
    (folder / ".gitattributes").write_text("*.parquet filter=lfs\n")
    (folder / "LICENSE.txt").write_text("Do what you like.\n")
    (folder / "dataset_infos.json").write_text("{}")
    assert texts(str(folder)) == CLONES[layout]
    assert texts(str(folder), "data.eval") == OTHERS[layout][:1]
    assert texts(str(folder), "data.test") == texts(f"{folder}:test") == OTHERS[layout][1:]


def test_a_clone_without_the_split_is_refused_with_those_it_has(tmp_path: Path) -> None:
    folder = put(tmp_path, "train-0.jsonl", "test-0.jsonl")
    with pytest.raises(
        ConfigError, match=r"data\.eval: .* no files of the split 'validation'; it has test, train"
    ) as e:
        texts(str(folder), "data.eval")
    assert f"{folder}:test" in str(e.value)
    with pytest.raises(ConfigError, match=r"'train\[:5\]' is a part of a split.*data\.max_samples"):
        texts(f"{folder}:train[:5]")


def test_words_that_only_contain_a_splits_name_do_not_split(tmp_path: Path) -> None:
    names = ["constraints.jsonl", "latest.jsonl", "testimony.jsonl"]
    assert texts(str(put(tmp_path, *names))) == names


README = """---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/*.jsonl
  - split: test
    path: [held_out/en.jsonl]
- config_name: de
  data_files: de/*.jsonl
---
# Title
"""


def test_a_clone_with_configurations_is_read_as_its_readme_says(tmp_path: Path) -> None:
    folder = put(tmp_path, "en/a.jsonl", "en/b.jsonl", "de/test.jsonl", "held_out/en.jsonl")
    (folder / "README.md").write_text(README)
    assert texts(str(folder), hub_config="en") == ["en/a.jsonl", "en/b.jsonl"]
    assert texts(str(folder), "data.test", hub_config="en") == ["held_out/en.jsonl"]
    assert texts(str(folder), hub_config="de") == ["de/test.jsonl"]
    with pytest.raises(ConfigError, match=r"the configurations of '.*' are en, de\..*data\.hub_config"):
        texts(str(folder))
    with pytest.raises(ConfigError, match=r"are en, de; not fr"):
        texts(str(folder), hub_config="fr")
    (folder / "README.md").unlink()
    with pytest.raises(ConfigError, match=r"data\.hub_config: is 'en', but .* no README\.md"):
        texts(str(folder), hub_config="en")


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "b.jsonl")
    folder = put(tmp_path / "data", "a.jsonl")
    os.symlink(tmp_path / "elsewhere", folder / "linked")
    os.symlink(folder, folder / "round")
    assert texts(str(folder)) == ["a.jsonl", "b.jsonl"]


# Several


def test_lists_and_patterns(tmp_path: Path) -> None:
    folder = put(tmp_path, "b.jsonl", "a.jsonl", "deep/c.jsonl", "[1].jsonl")
    assert texts([str(folder / "b.jsonl"), str(folder / "a.jsonl")]) == ["b.jsonl", "a.jsonl"]
    assert texts(f"{folder}/?.jsonl") == ["a.jsonl", "b.jsonl"]
    assert texts(f"{folder}/**/c*.jsonl") == ["deep/c.jsonl"]
    assert texts(f"{folder}/[1].jsonl") == ["[1].jsonl"], "a file of that very name is no pattern"
    with pytest.raises(ConfigError, match=r"data\.train: no file matches '.*/x\*\.jsonl'"):
        texts(f"{folder}/x*.jsonl")


# Datasets


def dataset(*rows: str) -> Any:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=NAMES)})
    return datasets.Dataset.from_dict({"text": rows, "label": [n % 2 for n in range(len(rows))]}, features=features)


def test_what_save_to_disk_wrote(tmp_path: Path) -> None:
    import datasets

    dataset("a", "b", "c", "d").save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=dataset("a", "b"), dev=dataset("c"), test=dataset("d")).save_to_disk(tmp_path / "all")
    assert texts(str(tmp_path / "one")) == texts(str(tmp_path / "one"), "data.test") == ["a", "b", "c", "d"]
    assert texts(f"{tmp_path}/one:train[1:3]") == ["b", "c"]
    assert texts(f"{tmp_path}/one:train[:75%]") == ["a", "b", "c"]
    assert texts(f"{tmp_path}/all:validation + test[-1:] + train[:1]") == ["c", "d", "a"]
    by_key = {key: texts(str(tmp_path / "all"), f"data.{key}") for key in ("train", "eval", "test")}
    assert by_key == {"train": ["a", "b"], "eval": ["c"], "test": ["d"]}
    assert texts(f"{tmp_path}/all:test") == ["d"]
    with pytest.raises(DataError, match=r"data\.train: 'nope' of the saved dataset '.*/all' cannot be read: .*nope"):
        texts(f"{tmp_path}/all:nope")


def test_a_saved_dataset_is_known_by_its_bytes_and_rows(tmp_path: Path) -> None:
    def opened(spec: str) -> Any:
        return open_source("data.train", str(tmp_path / spec), DataSection(train="x"), COLUMNS)

    for name, rows in (("a", "abcd"), ("b", "abcd"), ("c", "abce")):
        dataset(*rows).save_to_disk(tmp_path / name)
    assert opened("a").digest() == opened("b").digest() != opened("c").digest()
    assert opened("a:train[:2]").digest() != opened("a").digest()
    stamp = opened("a").stamp()
    [arrow] = (tmp_path / "a").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes())
    assert opened("a").stamp() != stamp


def test_a_hub_dataset_without_an_owner_and_parts_of_its_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    rows = {split: [{"text": f"{split} {n}"} for n in range(10)] for split in ("train", "test")}
    keep(tmp_path, monkeypatch, {"text": datasets.Value("string")}, rows, name="films")
    monkeypatch.chdir(tmp_path)
    assert texts("films") == [f"train {n}" for n in range(10)]
    assert texts("films:train[:20%]+test[9:]") == ["train 0", "train 1", "test 9"]
    assert texts("films", "data.test")[0] == "test 0"
    with pytest.raises(ConfigError, match=r"no such file or folder: 'films'\. Of a hub dataset, name the split"):
        texts("films", "--input")


# Class labels in Parquet


def test_parquet_of_the_hub_tells_its_label_names(tmp_path: Path) -> None:
    import datasets

    labels = datasets.ClassLabel(names=["z", "a", "m"])
    features = datasets.Features({"text": datasets.Value("string"), "label": labels, "tags": datasets.Sequence(labels)})
    rows = {"text": ["x", "y", "z"], "label": [2, 0, -1], "tags": [[0, 1], [], [2]]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    columns = {"text": "", "label?": "", "tags": ""}
    source = open_source("data.train", str(tmp_path / "train.parquet"), DataSection(train="x"), columns)
    found = [row.row for row in source.rows() if isinstance(row, Located)]
    assert found == [
        {"text": "x", "label": "m", "tags": ["z", "a"]},
        {"text": "y", "label": "z", "tags": []},
        {"text": "z", "tags": ["m"]},
    ]
    assert source.declared_labels() == [["z", "a", "m"]]


def test_files_of_a_folder_that_no_split_reads_are_named(tmp_path: Path) -> None:
    folder = put(tmp_path, "train.jsonl", "dev.jsonl", "test.jsonl", "notes.docx", "README.md", ".cache.jsonl")
    put(folder / "sub", "more.train.jsonl")
    put(folder / ".git", "HEAD", "config")
    opened = [
        open_source(key, str(folder), DataSection(train="x"), {"text": ""}) for key in ("data.train", "data.eval")
    ]
    others = [".cache.jsonl", ".git", "README.md", "notes.docx"]
    assert left_out_files(opened) == {folder: [Path(name) for name in [*others, "test.jsonl"]]}
    opened.append(open_source("data.test", str(folder), DataSection(train="x"), {"text": ""}))
    assert left_out_files(opened) == {folder: [Path(name) for name in others]}
    assert left_out_files([open_source("data.train", str(folder / "train.jsonl"), DataSection(train="x"), {})]) == {}


def test_images_that_a_table_may_refer_to_are_not_named_as_left_out(tmp_path: Path) -> None:
    folder, media = put(tmp_path, "rows.jsonl", "1.png", "2.png", "about.pdf"), {"image": "image"}
    columns = {"image": ""}
    table = open_source("data.train", str(folder), DataSection(train="x"), columns, media=media)
    assert left_out_files([table]) == {folder: [Path("about.pdf")]}
    (folder / "rows.jsonl").unlink()
    each = open_source("data.train", str(folder), DataSection(train="x"), columns, media=media)
    assert left_out_files([each]) == {folder: [Path("about.pdf")]}


def test_a_folder_without_data_is_refused_with_what_it_has(tmp_path: Path) -> None:
    folder = put(tmp_path, "README.md", *(f"{number}.docx" for number in range(6)))
    with pytest.raises(ConfigError, match=r"has no data files, but 0.docx, 1.docx, 2.docx, 3.docx, 4.docx, \.\.\.\."):
        open_source("data.train", str(folder), DataSection(train="x"), {"text": ""})
