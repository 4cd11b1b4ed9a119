"""Jobs that are signalled, run out of time, are preempted, or lose a rank, a node, a network: all draw one curve.

Each job is interrupted several times: a launch costs more than the steps between.
"""

import re

import pytest

from tests.slurm.cluster import NODES, wait_until
from tests.slurm.conftest import SAVED_EVERY

pytestmark = pytest.mark.cluster

STAGES = [SAVED_EVERY * i + SAVED_EVERY // 2 for i in (1, 4, 7)]
"""Steps at which a job is interrupted: between checkpoints, and each after a checkpoint that the one before has not."""


def check_the_same_curve(job, undisturbed, restarts):
    job.wait()
    assert (job.exit_code, job.restarts) == (0, restarts), job.written
    assert job.status["status"] == "done"
    assert (job.status["job"], job.status["restarts"]) == (job.id, restarts)
    fields = ("step", "sample_digest", "loss", "grad_norm")
    for kind, names in (("train", fields), ("test", ("step", "loss"))):
        ours, theirs = ([[e[name] for name in names] for e in run.events(kind)] for run in (undisturbed, job))
        assert theirs == ours, kind


def check_stopped_and_resumed(job, undisturbed, *reasons, restarts=None):
    """No step is lost: the run went on after the very step it was stopped at."""
    check_the_same_curve(job, undisturbed, restarts or len(reasons))
    stopped = re.findall(r"stopped at step (\d+): (\w+)\. Back to the queue, restart \d+ of at most 20", job.written)
    assert [why for _, why in stopped] == list(reasons), job.written
    assert [event["step"] for event in job.events("resume")] == [int(step) for step, _ in stopped]


def check_crashed_and_resumed(job, undisturbed, crashes):
    check_the_same_curve(job, undisturbed, restarts=crashes)
    resumed = [event["step"] for event in job.events("resume")]
    assert len(resumed) == len(set(resumed)) == crashes
    assert all(step and step % SAVED_EVERY == 0 for step in resumed), "a crash goes back to the last checkpoint"


def test_signals_while_the_ranks_load_and_to_the_script_itself(submit, undisturbed):
    """The first comes before train.py can handle it; a run that was told to begin anew does so once."""
    job = submit("signals", "multinode_ddp", "RECIPE", "--train.resume", "never")
    wait_until(lambda: len(ranks(job)) == 2, "the ranks to start")
    job.cluster.run("scancel", "--signal=USR1", job.id)
    wait_until(lambda: "restart 1 of at most 20" in job.written, "the job to go back to the queue")
    assert "stopped by a signal before training began" in job.written
    job.wait_for_step(STAGES[0])
    job.cluster.run("scancel", "--batch", "--signal=USR1", job.id)  # as --signal=B:USR1@120
    check_stopped_and_resumed(job, undisturbed, "SIGUSR1", restarts=2)


def test_the_time_limit_and_preemption(submit, undisturbed):
    job = submit("limit", "multinode_ddp", "RECIPE", options=("--time=60", "--signal=USR1@80"))
    job.wait_for_step(STAGES[0])
    # Slurm counts in minutes and looks every 30 seconds: the run is frozen until the warning comes, which wakes it
    job.cluster.run("kill", "-STOP", *ranks(job))
    minutes, seconds = running_time(job)
    until = minutes + (1 if seconds < 25 else 2)  # the warning is due at once, or soon
    job.cluster.run("scontrol", "update", f"JobId={job.id}", f"TimeLimit={until}")
    wait_until(lambda: "SIGUSR1" in job.written, "Slurm's warning")
    job.cluster.run("scontrol", "update", f"JobId={job.id}", "TimeLimit=60")
    job.wait_for_step(STAGES[1])
    urgent = submit.command("urgent", "true", "--partition=urgent", "--nodes=2", "--exclusive").wait()
    assert urgent.exit_code == 0
    assert job.status["status"] == "stopped", "it gave way before its time to end was over"
    check_stopped_and_resumed(job, undisturbed, "SIGUSR1", "SIGTERM")


def test_a_killed_rank_and_nodes_that_no_longer_reach_each_other(submit, undisturbed):
    """Slurm sees nothing amiss: the ranks find it, and the script puts the job back into the queue."""
    job = submit("unseen", "multinode_ddp", "RECIPE", "--train.hang_timeout", "20")
    job.wait_for_step(STAGES[0])
    job.cluster.run("kill", "-KILL", ranks(job)[-1])
    job.wait_for_step(STAGES[1])
    assert "Back to the queue, restart 1 of at most 20" in job.written
    job.cluster.isolate_nodes(True)
    try:
        wait_until(lambda: job.status["status"] == "failed", "the ranks to give up")
    finally:
        job.cluster.isolate_nodes(False)
    check_crashed_and_resumed(job, undisturbed, crashes=2)


def test_nodes_that_die_and_a_network_that_is_cut(submit, undisturbed):
    """The first node runs the batch script and rank 0, the second only a rank."""
    job = submit("nodes", "multinode_ddp", "RECIPE")
    for step, node in zip(STAGES, NODES, strict=False):
        job.wait_for_step(step)
        job.cluster.crash_node(node)
        wait_until(lambda: job.told("JobState") != "RUNNING", "Slurm to see it")
        job.cluster.start_node(node)
    job.wait_for_step(STAGES[2])
    job.cluster.cut(NODES[1])
    wait_until(lambda: job.told("JobState") != "RUNNING", "Slurm to see it")
    # Mended sooner, the ranks would meet again in time to save
    wait_until(lambda: len(ranks(job)) < 2, "Slurm to end the rank that it reaches")
    job.cluster.mend(NODES[1])
    check_crashed_and_resumed(job, undisturbed, crashes=3)
    assert "DUE TO NODE FAILURE" in job.written


def running_time(job):
    """How many minutes and seconds a job has run; tests do not take hours."""
    minutes, seconds = job.cluster.run("squeue", "-h", "-j", job.id, "-o", "%M").split(":")[-2:]
    return int(minutes), int(seconds)


def ranks(job):
    """The process ids of its ranks, as the cluster numbers them."""
    return job.cluster.run("pgrep", "-f", f"^python train.py .*{job.output_dir}", check=False).split()
