"""A recipe for runs in which something goes wrong."""

import json

import pytest

from tests.launching import write_recipe


@pytest.fixture(scope="session")
def recipe(tmp_path_factory, tiny_llama):
    """A tiny Llama with dropout, on 40 short texts: six steps of two micro-batches."""
    folder = tmp_path_factory.mktemp("faults")
    rows = [{"text": f"headline {i} rises " * (1 + i % 3)} for i in range(40)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_recipe(
        folder / "recipe.yaml",
        output_dir="unused",
        task={"name": "causal_lm"},
        model={"path": str(tiny_llama)},
        data={"train": str(folder / "data.jsonl"), "cache_dir": str(folder / "cache")},
        optim={"lr": 1e-3},
        train={"max_steps": 6, "global_batch_size": 4, "micro_batch_size": 2},
    )
