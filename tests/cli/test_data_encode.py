"""`onecurve data encode`: shards that are written once, staged like any data, and found again by the same command."""

import json

import pytest

from onecurve.cli import main
from tests.launching import write_recipe


@pytest.fixture
def recipe(tmp_path, tiny_bert):
    rows = [{"text": f"headline {i}", "label": ("up", "down")[i % 2]} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_recipe(
        tmp_path / "recipe.yaml",
        output_dir=str(tmp_path / "unused"),
        task={"name": "text_classification"},
        model={"path": str(tiny_bert)},
        data={"train": str(tmp_path / "rows.jsonl"), "cache_dir": str(tmp_path / "cache")},
        train={"max_steps": 2, "global_batch_size": 4, "micro_batch_size": 4},
    )


def test_it_says_what_it_wrote_and_stage_takes_it_as_data(recipe, tmp_path, capsys):
    shards = str(tmp_path / "shards")
    encode = ["data", "encode", str(recipe), "--output", shards]
    assert main(encode) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 shard, 20 examples, ")
    assert main(encode) == 0
    assert capsys.readouterr().out.startswith("1 shard, 20 examples: already there\n")
    assert main(["data", "stage", str(recipe), "--data.train", shards, "--data.shuffle_window", "1"]) == 0
    assert f"MB in {shards}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--shard_size", "0"], "--shard_size: must be at least 1; got 0."),
        (["--data.eval", "5%"], "data.eval: is a share of the training rows"),
        (["--data.train", "{news: rows.jsonl}"], "data.train: names several sources"),
        (["--data.shuffle_window", "2"], "data.shuffle_window: has no effect: data.train is not a folder of encoded"),
    ],
    ids=["size", "share", "named", "window"],
)
def test_a_mistake_is_one_message(recipe, tmp_path, capsys, words, told):
    assert main(["data", "encode", str(recipe), "--output", str(tmp_path / "shards"), *words]) == 2
    assert capsys.readouterr().err.startswith(f"onecurve data: {told}")
    assert not (tmp_path / "shards").exists()
