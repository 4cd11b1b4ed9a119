"""Training from encoded shards, in windows: one curve under every strategy, and through any interruption."""

import json
import os

import pytest
from ruamel.yaml import YAML

from onecurve.cli import main
from tests.launching import write_recipe
from tests.resume.curves import TOLERANCE, partings

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

STEPS = 8
WINDOW = ["--data.shuffle_window", "2"]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory, tiny_bert):
    """Of the rows, and of the shards that they were encoded into: dropout on, uneven lengths, two passes and a half."""
    folder = tmp_path_factory.mktemp("shards")
    lines = [{"text": f"headline {i} " * (1 + i % 5), "label": ("up", "down")[i % 2]} for i in range(37)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def recipe(name, train):
        return write_recipe(
            folder / f"{name}.yaml",
            output_dir="unused",
            task={"name": "text_classification"},
            model={"path": str(tiny_bert)},
            data={"train": str(train), "eval": str(folder / "rows.jsonl"), "cache_dir": str(folder / "cache")},
            optim={"lr": 2e-3, "weight_decay": 0.1, "max_grad_norm": 0.1, "schedule": "cosine", "warmup_steps": 2},
            train={"max_steps": STEPS, "global_batch_size": 12, "micro_batch_size": 2},
            eval={"every": 4},
        )

    rows = recipe("rows", folder / "rows.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onecurve.data.encoder._PART_ROWS", 3)
        encoded = main(["data", "encode", str(rows), "--output", str(folder / "shards"), "--shard_size", "5"])
    assert not encoded and len([*(folder / "shards").glob("shard-*")]) == 7
    return rows, recipe("shards", folder / "shards")


@pytest.fixture(scope="module")
def whole(recipes, forks, tmp_path_factory):
    """In one process, never interrupted, in windows."""
    run = forks.train(recipes[1], tmp_path_factory.mktemp("whole") / "run", "python", *WINDOW)
    assert len({step["loss"] for step in run.events("train")}) == STEPS, "nothing trained"
    assert "order     4 windows of 2 of 7 shards, about 10 examples each; shuffled within a window" in run.stdout
    return run


def test_without_windows_shards_draw_the_curve_of_their_rows_and_a_run_may_go_on_from_either(
    recipes, forks, tmp_path, whole
):
    rows = forks.train(recipes[0], tmp_path / "rows")
    assert not [*partings(rows, forks.train(recipes[1], tmp_path / "shards"), exactly=True)]
    assert next(partings(rows, whole)).startswith("other data or steps")
    forks.train(recipes[0], tmp_path / "moved", "python", "--train.stop_after", "3")
    assert not [*partings(rows, forks.train(recipes[1], tmp_path / "moved"), exactly=True)]


@pytest.mark.parametrize("how", ["ddp", "zero2"])
def test_every_strategy_draws_the_curve_of_one_process(recipes, forks, tmp_path, whole, how):
    other = forks.train(recipes[1], tmp_path, how, *WINDOW)
    assert not [*partings(whole, other)]
    for ours, theirs in zip(whole.events("eval"), other.events("eval"), strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=TOLERANCE)


def test_it_moves_between_strategies_and_world_sizes(recipes, forks, tmp_path, whole):
    for how, ranks, stop in (("zero2", 2, 2), ("ddp", 3, 5), ("python", 1, STEPS)):
        run = forks.train(recipes[1], tmp_path, how, *WINDOW, "--train.stop_after", str(stop), num_processes=ranks)
    assert not [*partings(whole, run)]


def test_staged_shards_draw_it_bit_for_bit_and_a_run_goes_on_with_and_without(recipes, forks, tmp_path, whole):
    staged = [*WINDOW, "--data.stage_to", str(tmp_path / "here")]
    assert not [*partings(whole, forks.train(recipes[1], tmp_path / "one", "python", *staged), exactly=True)]
    ranks = forks.train(recipes[1], tmp_path / "ranks", "ddp", *WINDOW)
    for stop, words in ((3, staged), (5, WINDOW), (STEPS, staged)):
        moved = forks.train(recipes[1], tmp_path / "moved", "ddp", *words, "--train.stop_after", str(stop))
        assert [*(tmp_path / "here").glob("shard-*")], "nothing was copied"
    assert not [*partings(ranks, moved, exactly=True)]


def test_another_window_is_refused_unless_allowed_and_begins_a_pass(recipes, forks, tmp_path, whole):
    forks.train(recipes[1], tmp_path, "python", *WINDOW, "--train.stop_after", "2")
    other = ["--data.shuffle_window", "3"]
    refused = forks.launch(recipes[1], tmp_path, "python", *other)
    assert refused.exit_code == 2 and "data.shuffle_window was 2 and is 3" in refused.stderr
    changed = forks.train(recipes[1], tmp_path, "python", *other, "--train.allow_changes", "[data.shuffle_window]")
    (told,) = changed.events("resume")[-1]["remarks"]
    assert told.endswith("continues after 24 samples, in pass 2 over the data, of whose 37 examples it has seen 0")


def test_a_missing_shard_is_told_before_anything_is_loaded(recipes, forks, tmp_path):
    (folder,) = {path.parent for path in (recipes[1].parent / "shards").glob("shard-000003")}
    os.rename(folder / "shard-000003", folder / "aside")
    try:
        ended = forks.launch(recipes[1], tmp_path, "python", *WINDOW)
    finally:
        os.rename(folder / "aside", folder / "shard-000003")
    assert ended.exit_code == 2 and "shard-000003" in ended.stderr and "No such file" in ended.stderr
    assert "Traceback" not in ended.stderr and "weights" not in ended.stdout


@pytest.fixture(scope="module")
def mixtures(recipes, tmp_path_factory):
    """Of two sources of rows; and the same with one of them encoded into shards."""
    folder, read = tmp_path_factory.mktemp("mixture"), YAML(typ="safe")
    lines = [{"text": f"tweet {i} " * (1 + i % 3), "label": ("up", "down")[i % 2]} for i in range(13)]
    (folder / "tweets.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = []
    for recipe in recipes:
        values = read.load(recipe.read_text())
        news = {"path": values["data"]["train"], "weight": 3}
        values["data"]["train"] = {"news": news, "tweets": {"path": str(folder / "tweets.jsonl"), "weight": 2}}
        found.append(write_recipe(folder / recipe.name, **values))
    return found


def test_a_mixture_of_shards_and_rows_is_one_curve_too(mixtures, forks, tmp_path):
    rows, shards = mixtures
    plain = forks.train(rows, tmp_path / "rows")
    assert not [*partings(plain, forks.train(shards, tmp_path / "shards"), exactly=True)]
    whole = forks.train(shards, tmp_path / "windows", "python", *WINDOW)
    assert "order     news: 4 windows of 2 of 7 shards" in whole.stdout
    assert next(partings(plain, whole)).startswith("other data or steps")
    told = [run.events("train")[-1]["num_samples_by_source"] for run in (plain, whole)]
    assert told[0] == told[1] and sum(told[0].values()) == 12 * STEPS - 10
    for how, ranks, stop in (("zero3", 2, 3), ("ddp", 2, 5), ("python", 1, STEPS)):
        run = forks.train(
            shards, tmp_path / "moved", how, *WINDOW, "--train.stop_after", str(stop), num_processes=ranks
        )
    assert not [*partings(whole, run)]
