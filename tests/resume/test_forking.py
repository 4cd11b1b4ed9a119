"""A forked run is the launched one, bit for bit: what forked runs show counts for launched ones."""

import pytest

from tests.launching import train
from tests.resume.curves import partings

pytestmark = pytest.mark.distributed

OF_THE_MOMENT = ("time", "tokens_per_second", "stall_seconds", "model")


def lasting(run):
    """Every line of metrics.jsonl, without what differs between two equal runs."""
    kinds = ("train", "eval", "checkpoint", "end")
    events = [event for kind in kinds for event in run.events(kind)]
    return [{key: value for key, value in event.items() if key not in OF_THE_MOMENT} for event in events]


@pytest.mark.parametrize("how", ["ddp", pytest.param("zero3", marks=pytest.mark.slow)])
def test_a_forked_run_is_the_launched_one_bit_for_bit(recipes, forks, tmp_path, how):
    overrides = ["--checkpoint.every", "3"]
    launched = train(recipes["causal_lm"], tmp_path / "launched", how, *overrides)
    forked = forks.train(recipes["causal_lm"], tmp_path / "forked", how, *overrides)
    assert lasting(forked) == lasting(launched)
    assert len(forked.events("train")) == 8
    assert not [*partings(launched, forked, exactly=True)]
    saved = [sorted(p.name for p in (run.output_dir / "checkpoints").rglob("*")) for run in (launched, forked)]
    assert saved[0] == saved[1]


def test_a_mistake_and_a_killed_rank_end_a_forked_run_as_a_launcher_would_end_it(recipes, forks, tmp_path):
    ended = forks.launch(recipes["causal_lm"], tmp_path / "mistake", "ddp", "--optim.lr", "high")
    assert (ended.exit_code, "optim.lr" in ended.stderr) == (2, True)
    run = forks.start(recipes["causal_lm"], tmp_path / "killed", "ddp", "--train.max_steps", "100000")
    while not (run.output_dir / "metrics.jsonl").exists():
        assert run.under_way
    run.kill(1)
    assert run.wait().exit_code == -9
