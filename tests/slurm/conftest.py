"""A real two-node Slurm cluster for the session, a recipe, and one run that nothing disturbs."""

import json

import pytest

from tests.launching import write_recipe
from tests.slurm.cluster import Cluster, missing
from tests.slurm.jobs import Submitting
from tests.tiny_models import build_tiny_llama

STEPS, SAVED_EVERY = 120, 10


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    if missing():
        pytest.skip(missing())
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    cluster.up()
    yield cluster
    cluster.down()


@pytest.fixture(scope="session")
def submit(cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps({"text": f"headline {i} " * (1 + i % 5)}) + "\n" for i in range(60)))
    recipe = write_recipe(
        folder / "recipe.yaml",
        output_dir="unused",
        seed=3,
        task={"name": "causal_lm"},
        model={"path": str(build_tiny_llama(folder / "llama"))},
        data={"train": str(data), "test": str(data), "cache_dir": str(folder / "cache")},
        optim={"lr": 2e-3, "weight_decay": 0.1, "max_grad_norm": 0.3, "schedule": "cosine"},
        train={"max_steps": STEPS, "global_batch_size": 8, "micro_batch_size": 2},
        checkpoint={"every": SAVED_EVERY},
    )
    return Submitting(cluster, recipe, folder)


@pytest.fixture(scope="session")
def undisturbed(submit):
    """A run of two ranks on two nodes, from its first step to its last."""
    job = submit("undisturbed", "multinode_ddp", "RECIPE").wait()
    assert job.exit_code == 0, job.written
    assert len({step["loss"] for step in job.events("train")}) == STEPS, "nothing trained"
    assert "2 node(s) x 1 rank(s)" in job.written
    return job
