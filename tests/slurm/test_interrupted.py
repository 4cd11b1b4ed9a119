"""Jobs that are signalled, run out of time, are preempted, or lose a rank, a node, a network: all draw one curve."""

import re

import pytest

from tests.slurm.cluster import NODES, wait_until

pytestmark = pytest.mark.cluster

SAVED_EVERY = 20


@pytest.fixture
def running(submit, request):
    """A job of two nodes in the middle of its training."""
    job = submit(request.node.name, "multinode_ddp", "RECIPE", options=("--time=60", "--signal=USR1@80"))
    job.wait_for_step(SAVED_EVERY + 5)
    return job


def check_the_same_curve(job, undisturbed):
    job.wait()
    assert job.exit_code == 0, job.written
    assert job.status["status"] == "done"
    fields = ("step", "sample_digest", "loss", "grad_norm")
    for kind, names in (("train", fields), ("test", ("step", "loss"))):
        ours, theirs = ([[e[name] for name in names] for e in run.events(kind)] for run in (undisturbed, job))
        assert theirs == ours, kind


def check_stopped_and_resumed(job, undisturbed, why):
    """No step is lost: the run went on after the very step it was stopped at."""
    check_the_same_curve(job, undisturbed)
    assert job.restarts == 1, job.written
    stopped = re.search(rf"stopped at step (\d+): {why}. Back to the queue, restart 1 of at most 20", job.written)
    assert stopped, job.written
    assert [event["step"] for event in job.events("resume")] == [int(stopped[1])]


def check_crashed_and_resumed(job, undisturbed):
    check_the_same_curve(job, undisturbed)
    assert job.restarts == 1, job.written
    (resumed,) = job.events("resume")
    assert resumed["step"] > 0
    assert resumed["step"] % SAVED_EVERY == 0, "a crash goes back to the last checkpoint"


def test_a_signal_to_the_job(running, undisturbed):
    running.cluster.run("scancel", "--signal=USR1", running.id)
    check_stopped_and_resumed(running, undisturbed, "SIGUSR1")


def test_a_job_that_was_told_to_begin_anew_does_so_once(submit, undisturbed):
    job = submit("anew", "multinode_ddp", "RECIPE", "--train.resume", "never")
    job.wait_for_step(SAVED_EVERY + 5)
    job.cluster.run("scancel", "--signal=USR1", job.id)
    check_stopped_and_resumed(job, undisturbed, "SIGUSR1")
    assert (job.status["job"], job.status["restarts"]) == (job.id, 1)


def test_the_time_limit(running, undisturbed):
    # Slurm counts in minutes and looks every 30 seconds: the run is frozen until the warning comes, which wakes it
    cluster = running.cluster
    cluster.run("kill", "-STOP", *ranks(running))
    until = minutes_running(cluster, running.id) + 2
    cluster.run("scontrol", "update", f"JobId={running.id}", f"TimeLimit={until}")
    wait_until(lambda: "SIGUSR1" in running.written, "Slurm's warning")
    cluster.run("scontrol", "update", f"JobId={running.id}", "TimeLimit=60")
    check_stopped_and_resumed(running, undisturbed, "SIGUSR1")


def test_preemption_by_a_job_of_higher_priority(running, submit, undisturbed):
    urgent = submit.command("urgent", "true", "--partition=urgent", "--nodes=2", "--exclusive").wait()
    assert urgent.exit_code == 0
    assert running.status["status"] == "stopped", "it gave way before its time to end was over"
    check_stopped_and_resumed(running, undisturbed, "SIGTERM")


def test_a_rank_that_is_killed(running, undisturbed):
    """Slurm sees nothing amiss: it is the script that puts the job back into the queue."""
    running.cluster.run("kill", "-KILL", ranks(running)[-1])
    check_crashed_and_resumed(running, undisturbed)
    assert "Back to the queue, restart 1 of at most 20" in running.written


@pytest.mark.parametrize("node", NODES)
def test_a_node_that_dies(running, undisturbed, node):
    """The first node runs the batch script and rank 0, the second only a rank."""
    running.cluster.crash_node(node)
    wait_until(lambda: running.told("JobState") != "RUNNING", "Slurm to see it")
    running.cluster.start_node(node)
    check_crashed_and_resumed(running, undisturbed)


def test_a_network_that_is_cut(running, undisturbed):
    running.cluster.cut(NODES[1])
    wait_until(lambda: running.told("JobState") != "RUNNING", "Slurm to see it")
    # Mended sooner, the ranks would meet again in time to save
    wait_until(lambda: len(ranks(running)) < 2, "Slurm to end the rank that it reaches")
    running.cluster.mend(NODES[1])
    check_crashed_and_resumed(running, undisturbed)
    assert "DUE TO NODE FAILURE" in running.written


def test_nodes_that_no_longer_reach_each_other(submit, undisturbed):
    """Slurm reaches both and sees nothing amiss: the ranks find that they hang."""
    job = submit("unreachable", "multinode_ddp", "RECIPE", "--train.hang_timeout", "20")
    job.wait_for_step(SAVED_EVERY + 5)
    job.cluster.isolate_nodes(True)
    try:
        wait_until(lambda: job.status["status"] == "failed", "the ranks to give up")
    finally:
        job.cluster.isolate_nodes(False)
    check_crashed_and_resumed(job, undisturbed)


def minutes_running(cluster, job):
    """How many whole minutes a job has run; tests do not take hours."""
    return int(cluster.run("squeue", "-h", "-j", job, "-o", "%M").split(":")[-2])


def ranks(job):
    """The process ids of its ranks, as the cluster numbers them."""
    return job.cluster.run("pgrep", "-f", f"^python train.py .*{job.output_dir}").split()
