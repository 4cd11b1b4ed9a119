"""Batch normalisation under ranks: one curve, one set of statistics, and both survive a change of strategy."""

import json
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from onecurve.cli import main
from tests.batch_norm_model import build_batch_norm_bert
from tests.launching import write_recipe
from tests.resume.curves import partings

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

LAUNCHES = ["python", "ddp", "zero2", "zero3"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Five micro-batches a step, so that one of two ranks makes a pass that does not count."""
    folder = tmp_path_factory.mktemp("batch_norm")
    rows = [{"text": f"headline {i} " * (1 + i % 5), "label": ("up", "down")[i % 2]} for i in range(30)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = build_batch_norm_bert(folder / "model", ["up", "down"])
    data = str(folder / "data.jsonl")
    return write_recipe(
        folder / "recipe.yaml",
        output_dir="unused",
        task={"name": "text_classification"},
        model={"path": str(model), "trust_remote_code": True},
        data={"train": data, "eval": data, "cache_dir": str(folder / "cache")},
        # What only shifts a layer's input has a gradient of zero, of whose noise Adam would make whole steps
        optim={"name": "sgd", "lr": 0.05, "max_grad_norm": 1.0},
        train={"max_steps": 6, "global_batch_size": 10, "micro_batch_size": 2},
        checkpoint={"every": 3, "keep": 9},
    )


def statistics(folder):
    found = {name: v for name, v in load_file(folder / "model.safetensors").items() if "running" in name}
    assert len(found) == 2 * 5
    return found


@pytest.mark.parametrize("what", ["frozen", "train"])
def test_it_trains_alike_everywhere_and_its_statistics_move_along(recipe, forks, tmp_path, what):
    setting = ["--model.batch_norm", what]
    wholes = {how: forks.train(recipe, tmp_path / how, how, *setting) for how in LAUNCHES}
    one = wholes["python"]
    problems = [f"{how}: {parting}" for how in LAUNCHES[1:] for parting in partings(one, wholes[how])]
    for source, target in pairwise([*LAUNCHES, "python"] if what == "train" else []):
        folder = tmp_path / f"{source} to {target}"
        forks.train(recipe, folder, source, *setting, "--train.stop_after", "3")
        resumed = forks.train(recipe, folder, target, *setting)
        assert [event["step"] for event in resumed.events("resume")] == [3]
        problems += [f"{source} to {target}: {parting}" for parting in partings(one, resumed)]
    assert not problems, "\n".join(problems)

    before, after = statistics(recipe.parent / "model"), statistics(one.output_dir / "model")
    moved = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert moved == ([] if what == "frozen" else [*before])
    run = wholes["zero3"].output_dir
    step, target = str(run / "checkpoints/step-00000006"), str(tmp_path / "converted")
    assert main(["checkpoint", "convert", step, target, "--trust_remote_code"]) == 0
    ours, written = (load_file(folder / "model.safetensors") for folder in (tmp_path / "converted", run / "model"))
    assert ours.keys() == written.keys() and all(torch.equal(ours[name], written[name]) for name in ours)
