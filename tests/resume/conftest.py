"""Recipes of three tasks on tiny models, all of eight steps."""

import json

import pytest

from tests.launching import write_recipe


@pytest.fixture(scope="session")
def recipes(tmp_path_factory, tiny_llama, tiny_bert):
    """A recipe a task: dropout on, clipping active, two groups of weight decay."""
    folder = tmp_path_factory.mktemp("resume")
    rows = [{"text": f"headline {i} " * (1 + i % 5), "label": ("up", "down")[i % 2]} for i in range(30)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(name, model, **columns):
        data = str(folder / "data.jsonl")
        return write_recipe(
            folder / f"{name}.yaml",
            output_dir="unused",
            task={"name": name},
            model={"path": str(model)},
            data={"train": data, "eval": data, "columns": columns, "cache_dir": str(folder / "cache")},
            optim={"lr": 2e-3, "weight_decay": 0.1, "max_grad_norm": 0.1, "schedule": "cosine", "warmup_steps": 2},
            # 30 examples in steps of 8: an epoch is 4 steps, the last one short; steps 3 and 5 lie inside epochs
            train={"max_steps": 8, "global_batch_size": 8, "micro_batch_size": 2},
        )

    return {
        "causal_lm": write("causal_lm", tiny_llama),
        "sft": write("sft", tiny_llama, prompt="text", response="label"),
        "text_classification": write("text_classification", tiny_bert),
    }
