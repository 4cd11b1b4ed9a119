"""Two nodes draw the curve of one, from the scripts and under accelerate launch; several worlds are refused."""

import pytest

from tests.launching import ROOT
from tests.slurm.conftest import STEPS

pytestmark = pytest.mark.cluster

TOLERANCE = 1e-6
TWO_GPUS = ("--gpus-per-node=2", "--cpus-per-gpu=1")
ALONE = "accelerate launch --config_file accelerate_configs/ddp.yaml --num_processes 1 --main_process_port 0 train.py"
BY_HAND = (
    "srun --nodes=2 --ntasks=2 bash -c 'accelerate launch --config_file {config} --num_machines 2 --num_processes 2 "
    "--machine_rank $SLURM_PROCID --main_process_ip $(scontrol show hostnames | head -n 1) --main_process_port {port} "
    "train.py {recipe} --output_dir {output_dir} --train.stop_after {stop}'"
)


def compare(ours, theirs, steps):
    ours, theirs = ours.events("train")[:steps], theirs.events("train")[:steps]
    assert len(ours) == len(theirs) == steps
    assert [s["sample_digest"] for s in ours] == [s["sample_digest"] for s in theirs]
    assert [s["loss"] for s in theirs] == pytest.approx([s["loss"] for s in ours], rel=TOLERANCE)
    assert [s["grad_norm"] for s in theirs] == pytest.approx([s["grad_norm"] for s in ours], rel=5 * TOLERANCE)


def test_two_nodes_draw_the_curve_of_two_ranks_on_one_and_zero_too(submit, undisturbed):
    node = submit("node", "node", "RECIPE", options=TWO_GPUS)
    # Where sums are taken in another order the rounding grows with the steps: 40 of the run's
    zero = submit("zero", "multinode_zero", "RECIPE", "--train.stop_after", "40")
    assert node.wait().exit_code == 0, node.written
    assert "1 node(s) x 2 rank(s) on node" in node.written
    compare(node, undisturbed, STEPS)
    assert [e["loss"] for e in node.events("test")] == pytest.approx([e["loss"] for e in undisturbed.events("test")])
    assert zero.wait().exit_code == 0, zero.written
    assert zero.status["status"] == "stopped"
    compare(undisturbed, zero, 40)


def test_accelerate_launch_on_each_node_draws_it_too(submit, undisturbed):
    jobs = []
    for config in ("multinode", "multinode_zero2"):
        path = ROOT / "accelerate_configs" / f"{config}.yaml"
        words = {"config": path, "recipe": submit.recipe, "output_dir": submit.folder / config, "stop": 10}
        jobs.append(submit.command(config, BY_HAND.format(**words, port=29511 + len(jobs)), "--nodes=2"))
    for job in jobs:
        assert job.wait().exit_code == 0, job.written
        compare(undisturbed, job, 10)


def test_two_worlds_of_one_process_are_refused(submit):
    jobs = {}
    for launch, code in (("python train.py", 2), (ALONE, 1)):  # accelerate launch makes every failure a 1
        name = f"worlds-{code}"
        command = f"srun --nodes=2 --ntasks=2 {launch} {submit.recipe} --output_dir {submit.folder / name}"
        jobs[code] = submit.command(name, command, "--nodes=2")
    for code, job in jobs.items():
        assert job.wait().exit_code == code
        assert "Slurm started 2 tasks, but this one has a world size of 1" in job.written
        assert not job.output_dir.exists()
