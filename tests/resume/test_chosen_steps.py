"""`checkpoint.also`: steps that are saved besides, the very start among them, and stay."""

import json

import pytest

from onecurve.config import load_recipe
from onecurve.errors import UserError
from tests.launching import write_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_llama):
    folder = tmp_path_factory.mktemp("chosen")
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": f"number {i} " * 5}) + "\n" for i in range(24)))
    return write_recipe(
        folder / "recipe.yaml",
        output_dir="unused",
        task={"name": "causal_lm"},
        model={"path": str(tiny_llama)},
        data={"train": str(folder / "train.jsonl"), "cache_dir": str(folder / "cache")},
        optim={"lr": 1e-3, "max_grad_norm": 0.3},
        train={"max_steps": 6, "global_batch_size": 8, "micro_batch_size": 2},
    )


def saved(run):
    return sorted(path.name for path in (run.output_dir / "checkpoints").glob("step-*"))


@pytest.mark.slow
@pytest.mark.distributed
def test_chosen_steps_are_saved_and_stay_and_the_start_can_be_gone_on_from(forks, recipe, tmp_path):
    words = ["--checkpoint.every", "2", "--checkpoint.keep", "1", "--checkpoint.also", "[0, 1]"]
    whole = forks.train(recipe, tmp_path / "whole", "python", *words)
    assert saved(whole) == ["step-00000000", "step-00000001", "step-00000006"]
    start = whole.output_dir / "checkpoints" / "step-00000000"
    again = forks.train(recipe, tmp_path / "again", "python", "--train.resume", str(start), "--checkpoint.also", "[3]")
    assert again.events("train")[0]["step"] == 1
    assert [(e["loss"], e["grad_norm"]) for e in again.events("train")] == [
        (e["loss"], e["grad_norm"]) for e in whole.events("train")
    ], "the start is the start, bit for bit"
    assert saved(again) == ["step-00000003", "step-00000006"]
    elsewhere = forks.train(recipe, tmp_path / "elsewhere", "zero2", "--train.resume", str(start))
    assert [e["loss"] for e in elsewhere.events("train")] == pytest.approx(
        [e["loss"] for e in whole.events("train")], rel=1e-6
    )
    (resumed,) = elsewhere.events("resume")
    assert (resumed["step"], resumed["checkpoint"]) == (0, str(start))


def test_what_is_no_step_is_refused(recipe):
    with pytest.raises(UserError, match=r"checkpoint\.also"):
        load_recipe([str(recipe), "--checkpoint.also", "[-1]"])
