"""Activations that are not kept, and logits that are never all there: the curve of a run that has room for them."""

import json

import pytest

from tests.launching import write_recipe
from tests.resume.curves import partings
from tests.tiny_models import build_tiny_llama

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
LORA = ["--peft.method", "lora", "--peft.lora_dropout", "0.1", "--peft.target_modules", "all-linear"]
CHUNKED = ["--train.logits", "chunked"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("less")
    rows = [{"text": f"number {i} and its square {i * i}, " * (1 + i % 6)} for i in range(60)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def recipe(folder):
    model = build_tiny_llama(folder / "llama", hidden_size=128, intermediate_size=256, num_hidden_layers=3)
    return write_recipe(
        folder / "recipe.yaml",
        output_dir="unused",
        task={"name": "causal_lm"},
        model={"path": str(model)},
        data={
            "train": str(folder / "train.jsonl"),
            "eval": str(folder / "train.jsonl"),
            "cache_dir": str(folder / "c"),
        },
        optim={"lr": 1e-3},
        train={"max_steps": 6, "global_batch_size": 8, "micro_batch_size": 2, "packing": "auto"},
    )


@pytest.fixture(scope="module")
def kept(forks, recipe, folder):
    """Train once a setting, with everything kept, in one process."""
    runs = {}

    def run(*overrides):
        if overrides not in runs:
            runs[overrides] = forks.train(recipe, folder / f"kept{len(runs)}", "python", *overrides)
        return runs[overrides]

    return run


@pytest.mark.parametrize("peft", [[], LORA], ids=["full", "lora"])
@pytest.mark.parametrize(
    ("how", "less"),
    [
        ("python", ["--train.activations", "selective", *CHUNKED]),
        ("ddp", ["--train.activations", "selective", *CHUNKED]),
        ("zero2", ["--train.activations", "offload", *CHUNKED]),
        ("zero3", ["--train.activations", "offload", *CHUNKED]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[1::2]),
)
def test_less_memory_draws_the_same_curve(forks, recipe, kept, tmp_path, how, less, peft):
    run = forks.train(recipe, tmp_path / "run", how, *less, *peft, num_processes=2)
    whole = kept(*peft)
    assert whole.events("train")[-1]["loss"] < whole.events("train")[0]["loss"]
    assert not [*partings(whole, run)]
    assert run.events("eval")[-1]["loss"] == pytest.approx(whole.events("eval")[-1]["loss"], rel=1e-5)


def test_selective_is_refused_under_zero_3(forks, recipe, tmp_path):
    run = forks.launch(recipe, tmp_path / "run", "zero3", "--train.activations", "selective")
    assert "train.activations: selective does not work with ZeRO-3" in run.stderr
    assert not run.output_dir.exists()
