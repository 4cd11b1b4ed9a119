"""How the ranks are laid out on the job's nodes: the same number on each, a rank per GPU."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onecurve.errors import LaunchError


@dataclass(frozen=True)
class Layout:
    """Ranks and CPUs, the same on each node."""

    nodes: int
    ranks: int
    """Per node."""
    cpus: int
    """Per rank."""

    @property
    def world_size(self) -> int:
        """The ranks of all nodes."""
        return self.nodes * self.ranks


def lay_out(environment: Mapping[str, str], gpus_by_node: Sequence[int]) -> Layout:
    """Lay the ranks out: a rank per GPU; without GPUs, the tasks that were asked for, or one per node.

    Args:
        environment: The SLURM_* variables of the batch script. SLURM_CPUS_ON_NODE and SLURM_GPUS_ON_NODE tell of its
            own node, the first, only.
        gpus_by_node: GPUs of each node or group of equal nodes; empty where that is not known.

    Raises:
        LaunchError: The resources differ between nodes, do not match the tasks, or are too few.
    """
    nodes = int(environment["SLURM_JOB_NUM_NODES"])
    gpus = int(environment.get("SLURM_GPUS_ON_NODE", "0"))
    if len(set(gpus_by_node)) > 1:
        raise LaunchError(
            f"the nodes have different numbers of GPUs ({', '.join(map(str, gpus_by_node))}), but each must run the "
            "same number of ranks.",
            fix="Ask for GPUs with --gpus-per-node, not with --gpus.",
        )
    tasks = int(environment.get("SLURM_NTASKS", nodes * (gpus or 1)))
    if tasks % nodes:
        raise LaunchError(f"{tasks} tasks do not spread evenly over {nodes} nodes.", fix="Use --ntasks-per-node.")
    ranks = gpus or tasks // nodes
    if tasks != nodes * ranks:
        raise LaunchError(
            f"{tasks} task(s) were asked for, but a GPU gets a rank, and {nodes} node(s) of {ranks} GPU(s) have "
            f"{nodes * ranks}.",
            fix="Leave out --ntasks, --ntasks-per-node and --gpus-per-task.",
        )
    cpus = _cpus_by_node(environment)
    if min(cpus) < ranks:
        differ = f" ({', '.join(map(str, cpus))} on the nodes)" if len(set(cpus)) > 1 else ""
        raise LaunchError(
            f"{ranks} rank(s) per node need as many CPUs, but a node has {min(cpus)}{differ}.",
            fix="Ask for the same number on each node, with --cpus-per-gpu, --cpus-per-task or --ntasks-per-node.",
        )
    return Layout(nodes, ranks, min(cpus) // ranks)


def _cpus_by_node(environment: Mapping[str, str]) -> list[int]:
    """Read the CPUs of each group of equal nodes from `4(x2),2` and of this node from SLURM_CPUS_ON_NODE."""
    told = re.sub(r"\(x\d+\)", "", environment.get("SLURM_JOB_CPUS_PER_NODE", ""))
    groups = [int(count) for count in told.split(",") if count]
    return [*groups, *({int(environment["SLURM_CPUS_ON_NODE"])} - set(groups))]
