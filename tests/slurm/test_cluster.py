"""The cluster itself: it is one, and nothing of it outlives it."""

import subprocess
from pathlib import Path

import pytest

from tests.slurm.cluster import ADDRESSES, NODES, Cluster, missing

pytestmark = pytest.mark.cluster


def traces():
    """What a cluster could leave on the machine: mounts, names, links."""
    links = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout
    return Path("/proc/mounts").read_text(), Path("/etc/hosts").read_text(), links


def processes_of(cluster):
    """The environment of each tells where its Slurm's settings lie."""
    command = f"grep --files-with-matches --no-messages --text {cluster.folder}/slurm.conf /proc/[0-9]*/environ"
    return subprocess.run(command, shell=True, capture_output=True, text=True, check=False).stdout.split()


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_nothing_of_a_cluster_is_left(tmp_path):
    before, cluster = traces(), Cluster(tmp_path / "cluster")
    cluster.up()
    try:
        addresses = cluster.run("srun", "--nodes=2", "hostname", "-i").split()
        assert sorted(addresses) == [ADDRESSES[name] for name in NODES]
        assert len(processes_of(cluster)) >= 4, "munged, slurmctld and a slurmd on each node"
        assert traces() == before, "what it lays is its own"
    finally:
        cluster.down()
    assert processes_of(cluster) == []
    assert traces() == before
