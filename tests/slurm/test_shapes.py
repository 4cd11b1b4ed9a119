"""What a script makes of the resources it was given; what it refuses, it refuses at once and for good."""

from dataclasses import replace

import pytest

pytestmark = pytest.mark.cluster

GPUS = "--gpus-per-node=2"


@pytest.mark.parametrize(
    ("script", "options", "said"),
    [
        ("node", (GPUS,), "2 ranks a node need as many CPUs and have 1"),
        ("node", (GPUS, "--cpus-per-gpu=1", "--ntasks-per-node=1"), "1 task(s) were asked for, but a GPU gets a rank"),
        ("multinode_ddp", ("--ntasks=3",), "3 tasks do not spread evenly over 2 nodes"),
        ("single", ("--ntasks=2",), "single.yaml starts one process and there is room for 2 ranks"),
    ],
)
def test_resources_that_do_not_fit_are_refused(submit, script, options, said):
    job = submit(f"misfit-{script}-{len(options)}", script, "RECIPE", options=options).wait()
    assert (job.exit_code, job.restarts) == (2, 0), job.written
    assert said in job.written
    assert not job.output_dir.exists()


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (("RECIPE", "--optim.lrr", "1"), "optim.lrr"),
        (("--config_file", "zero9.yaml", "RECIPE"), "there is no file 'zero9.yaml'"),
        (("RECIPE", "--data.train", "nowhere.jsonl"), "nowhere.jsonl"),  # found by the ranks, not by the script
    ],
)
def test_a_mistake_of_the_users_is_said_and_not_repeated(submit, mistake, said):
    job = submit(f"mistake-{mistake[1].strip('-')}", "multinode_ddp", *mistake).wait()
    assert (job.exit_code, job.restarts) == (2, 0), job.written
    assert said in job.written
    assert not job.output_dir.exists()


def test_outside_the_repository_a_script_says_where_to_submit(submit):
    job = submit("elsewhere", "single", "RECIPE", options=("--chdir=/",)).wait()
    assert (job.exit_code, job.restarts) == (2, 0)
    assert "submit from the repository's root" in job.written


def test_each_seed_is_a_run_of_its_own_and_goes_back_to_the_queue_alone(submit):
    array = submit("seeds", "seeds", "RECIPE", options=("--array=0-1",))
    runs = [
        replace(array, id=f"{array.id}_{seed}", output_dir=submit.folder / f"seeds-seed-{seed}") for seed in range(2)
    ]
    for run in runs:
        run.wait_for_step(1)
    last = runs[1]  # its job id is that of the whole array
    assert last.told("JobId") == array.id
    last.cluster.run("scancel", "--signal=USR1", last.id)
    assert [(run.wait().exit_code, run.restarts) for run in runs] == [(0, 0), (0, 1)], last.written
    first, second = ([step["sample_digest"] for step in run.events("train")] for run in runs)
    assert len(first) == len(second) == 200
    assert first != second
