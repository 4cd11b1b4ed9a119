"""What a script makes of the resources it was given; what it refuses, it refuses at once and for good."""

import re
from dataclasses import replace

import pytest

from tests.launching import ROOT
from tests.slurm.cluster import wait_until
from tests.slurm.conftest import STEPS

pytestmark = pytest.mark.cluster

REFUSED = {
    "uneven GPUs": (
        "multinode_ddp", ("--gpus=3", "--cpus-per-gpu=1"), (),
        "different numbers of GPUs (2, 1), but each must run the same number of ranks",
    ),
    "one process": ("single", ("--ntasks=2",), (), "single.yaml' starts one process"),
    "a mistake": ("multinode_ddp", (), ("--train.max_stepz", "1"), "train.max_stepz"),
    # What only the ranks find. Without DeepSpeed's settings ZeRO would be DDP, whose curve is no other
    "no data": ("multinode_ddp", (), ("--data.train", "nowhere.jsonl"), "nowhere.jsonl"),
    "DeepSpeed": ("multinode_zero", (), ("--optim.name", "adafactor"), "ZeRO gives each rank a flat slice"),
}  # fmt: skip


def test_what_does_not_fit_is_said_and_not_repeated(submit):
    jobs = {
        name: submit(name.replace(" ", "-"), script, "RECIPE", *words, options=options)
        for name, (script, options, words, _) in REFUSED.items()
    }
    for name, job in jobs.items():
        assert (job.wait().exit_code, job.restarts) == (2, 0), job.written
        assert REFUSED[name][-1] in job.written
        assert not job.output_dir.exists()


def test_ranks_that_srun_cannot_start_are_not_tried_again(submit):
    asked = {"SLURM_GRES": "gpu:2"}  # of a job without GPUs
    job = submit("no-step", "single", "RECIPE", **asked).wait()
    assert (job.exit_code, job.restarts) == (1, 0), job.written
    assert "srun: error: Unable to create step" in job.written
    assert "srun could not start the ranks, for the reason above. It would fail again" in job.written


def test_submitted_from_elsewhere_a_script_says_in_its_log_where_to_submit(submit, tmp_path):
    script = str(ROOT / "slurm" / "single.sbatch")
    job = submit.cluster.run("sbatch", "--parsable", script, "recipe.yaml", cwd=tmp_path)
    log = tmp_path / f"onecurve-{job}.out"
    wait_until(lambda: log.exists() and log.read_text(), "its log")
    assert "submit from the repository's root" in log.read_text()


def test_each_seed_is_a_run_of_its_own_and_goes_back_to_the_queue_alone(submit):
    array = submit("seeds", "seeds", "RECIPE", options=("--array=0-1",))
    runs = [
        replace(array, id=f"{array.id}_{seed}", output_dir=submit.folder / f"seeds-seed-{seed}") for seed in range(2)
    ]
    for run in runs:
        run.wait_for_step(1)
    last = runs[1]  # its job id is that of the whole array
    assert last.told("JobId") == array.id
    last.cluster.run("scancel", "--batch", "--signal=USR1", last.id)
    assert [(run.wait().exit_code, run.restarts) for run in runs] == [(0, 0), (0, 1)], last.written
    assert re.search(
        rf"^\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d slurm: job {array.id}_0, restarted 0 times", array.written, re.M
    )
    first, second = ([step["sample_digest"] for step in run.events("train")] for run in runs)
    assert len(first) == len(second) == STEPS
    assert first != second
