"""Two nodes draw the curve of one, from the scripts and under accelerate launch; several worlds are refused."""

import pytest

from tests.launching import ROOT

pytestmark = pytest.mark.cluster

TOLERANCE = 1e-6
TWO_GPUS = ("--gpus-per-node=2", "--cpus-per-gpu=1")
ALONE = "accelerate launch --config_file accelerate_configs/ddp.yaml --num_processes 1 --main_process_port 0 train.py"
BY_HAND = (
    "srun --nodes=2 --ntasks=2 bash -c 'accelerate launch --config_file {config} --num_machines 2 --num_processes 2 "
    "--machine_rank $SLURM_PROCID --main_process_ip $(scontrol show hostnames | head -n 1) --main_process_port 29511 "
    "train.py {recipe} --output_dir {output_dir} --train.stop_after {stop}'"
)


def compare(ours, theirs, steps):
    ours, theirs = ours.events("train")[:steps], theirs.events("train")[:steps]
    assert len(ours) == len(theirs) == steps
    assert [s["sample_digest"] for s in ours] == [s["sample_digest"] for s in theirs]
    assert [s["loss"] for s in theirs] == pytest.approx([s["loss"] for s in ours], rel=TOLERANCE)
    assert [s["grad_norm"] for s in theirs] == pytest.approx([s["grad_norm"] for s in ours], rel=5 * TOLERANCE)


def test_two_nodes_draw_the_curve_of_two_ranks_on_one(submit, undisturbed):
    node = submit("node", "node", "RECIPE", options=TWO_GPUS).wait()
    assert node.exit_code == 0, node.written
    assert "1 node(s) x 2 rank(s) on node" in node.written
    compare(node, undisturbed, 200)
    assert [e["loss"] for e in node.events("test")] == pytest.approx([e["loss"] for e in undisturbed.events("test")])


def test_zero_over_two_nodes_draws_it_too(submit, undisturbed):
    # Where sums are taken in another order the rounding grows with the steps: 40 of the run's 200
    zero = submit("zero", "multinode_zero", "RECIPE", "--train.stop_after", "40").wait()
    assert zero.exit_code == 0, zero.written
    assert zero.status["status"] == "stopped"
    compare(undisturbed, zero, 40)


def test_ranks_that_srun_starts_know_what_accelerate_launch_would_tell_them(submit):
    """Without DeepSpeed's settings ZeRO would be DDP, whose curve is no other."""
    job = submit("deepspeed", "multinode_zero", "RECIPE", "--optim.name", "adafactor").wait()
    assert job.exit_code == 2, job.written
    assert "ZeRO gives each rank a flat slice" in job.written


@pytest.mark.parametrize("config", ["multinode", "multinode_zero2"])
def test_accelerate_launch_on_each_node_draws_it_too(submit, undisturbed, config):
    output_dir = submit.folder / config
    path = ROOT / "accelerate_configs" / f"{config}.yaml"
    command = BY_HAND.format(config=path, recipe=submit.recipe, output_dir=output_dir, stop=10)
    job = submit.command(config, command, "--nodes=2").wait()
    assert job.exit_code == 0, job.written
    compare(undisturbed, job, 10)


@pytest.mark.parametrize(("launch", "code"), [("python train.py", 2), (ALONE, 1)])
def test_two_worlds_of_one_process_are_refused(submit, launch, code):
    name = f"worlds-{code}"
    command = f"srun --nodes=2 --ntasks=2 {launch} {submit.recipe} --output_dir {submit.folder / name}"
    job = submit.command(name, command, "--nodes=2").wait()
    assert job.exit_code == code  # accelerate launch makes every failure a 1
    assert "Slurm started 2 tasks, but this one has a world size of 1" in job.written
    assert not job.output_dir.exists()
