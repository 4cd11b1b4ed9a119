"""How ranks are laid out: the variables and records are those that Slurm 22.05 set and printed."""

import pytest

from onecurve.errors import LaunchError
from slurm.layout import lay_out
from slurm.scontrol import parse

RECORD = """\
JobId=1 JobName=Requeue=0 JobState=NONE
   UserId=root(0) GroupId=root(0) MCS_label=N/A
   JobState=RUNNING Reason=None Dependency=(null)
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
   PreemptEligibleTime=2026-11-26T01:10:35 PreemptTime=None
   NodeList=nodea,nodeb
   NumNodes=2 NumCPUs=3 NumTasks=2 CPUs/Task=1 ReqB:S:C:T=0:0:*:*
   TRES=cpu=3,node=2,billing=3
   JOB_GRES=gpu:3
     Nodes=nodea CPU_IDs=0-1 Mem=0 GRES=gpu:2(IDX:0-1)
     Nodes=nodeb CPU_IDs=0 Mem=0 GRES=gpu:1(IDX:0)
   Command=/tmp/show.sh
"""


def test_the_record_of_a_job():
    record = parse(RECORD)
    assert (record.state, record.may_requeue, record.preempted, record.gpus) == ("RUNNING", True, False, (2, 1))
    other = RECORD.replace("Requeue=1", "Requeue=0").replace("PreemptTime=None", "PreemptTime=2026-11-26T01:12:35")
    assert (parse(other).may_requeue, parse(other).preempted) == (False, True)
    assert parse("") == parse("slurm_load_jobs error: Unable to contact slurm controller")
    assert (parse("").may_requeue, parse("").state, parse("").gpus) == (True, "", ())


@pytest.mark.parametrize(
    ("gres", "count"),
    [
        ("", 0),
        ("gpu:8(IDX:0-7)", 8),
        ("gpu:a100:4(IDX:0,2-3,5)", 4),
        ("gpu:a100_1g.5gb:2(IDX:0-1),gpu:h100:1(IDX:2)", 3),
        ("nic:2(IDX:0-1),gpu:1(IDX:0)", 1),
        ("mps:100(IDX:0)", 0),
    ],
)
def test_gpus_of_a_node(gres, count):
    line = f"     Nodes=node[1-2,7] CPU_IDs=0-3 Mem=0 GRES={gres}\n"
    assert parse(f"JobId=1\n{line}").gpus == (count,)


def slurm(nodes, cpus, **more):
    return {"SLURM_JOB_NUM_NODES": str(nodes), "SLURM_JOB_CPUS_PER_NODE": cpus, "SLURM_CPUS_ON_NODE": cpus[0]} | more


@pytest.mark.parametrize(
    ("environment", "gpus", "nodes", "ranks", "cpus"),
    [
        (slurm(1, "4"), (), 1, 1, 4),
        (slurm(2, "4(x2)"), (), 2, 1, 4),
        (slurm(2, "4(x2)", SLURM_NTASKS="4"), (0,), 2, 2, 2),
        (slurm(2, "4(x2)", SLURM_GPUS_ON_NODE="2"), (2,), 2, 2, 2),
        (slurm(2, "4(x2)", SLURM_GPUS_ON_NODE="2"), (2, 2), 2, 2, 2),  # two lines: other CPU numbers
        (slurm(2, "4(x2)", SLURM_GPUS_ON_NODE="2", SLURM_NTASKS="4"), (), 2, 2, 2),
        # The first node has more CPUs than another: cpus-per-task must fit on both
        (slurm(2, "6,4", SLURM_NTASKS="4"), (), 2, 2, 2),
        (slurm(3, "4,6(x2)"), (), 3, 1, 4),
        (slurm(1, "8", SLURM_CPUS_ON_NODE="4"), (), 1, 1, 4),  # a thread per core
    ],
)
def test_each_node_gets_the_same_ranks(environment, gpus, nodes, ranks, cpus):
    layout = lay_out(environment, gpus)
    assert (layout.nodes, layout.ranks, layout.cpus, layout.world_size) == (nodes, ranks, cpus, nodes * ranks)


@pytest.mark.parametrize(
    ("environment", "gpus", "said"),
    [
        (slurm(2, "2,1", SLURM_GPUS_ON_NODE="2"), (2, 1), "different numbers of GPUs (2, 1)"),
        (slurm(2, "2(x2)"), (0, 2), "Ask for GPUs with --gpus-per-node, not with --gpus"),
        (slurm(1, "1", SLURM_GPUS_ON_NODE="2"), (2,), "2 rank(s) per node need as many CPUs, but a node has 1."),
        (slurm(2, "3,1", SLURM_NTASKS="4"), (), "but a node has 1 (3, 1 on the nodes)"),
        (
            slurm(1, "4", SLURM_GPUS_ON_NODE="2", SLURM_NTASKS="1"),
            (2,),
            "1 task(s) were asked for, but a GPU gets a ran",
        ),
        (slurm(2, "2,1", SLURM_NTASKS="3"), (), "3 tasks do not spread evenly over 2 nodes"),
    ],
)
def test_resources_that_do_not_fit_are_refused(environment, gpus, said):
    with pytest.raises(LaunchError) as refused:
        lay_out(environment, gpus)
    assert said in str(refused.value)
