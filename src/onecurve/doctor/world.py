"""The ranks that were started: how they connect, which are missing, and how they exchange values."""

import json
import os
import shutil
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from time import monotonic, sleep
from typing import Any

from onecurve.errors import LaunchError
from onecurve.machine.distributed import asked_world_size, launched_rank

_PREFIX = "onecurve doctor"
_DEFAULT_PORT = 29500
_GRACE_SECONDS = 60
"""How much longer than rank 0's own wait the others leave it to answer."""
_SECONDS_TO_TELL = 180
"""How long rank 0 waits for what the others found."""


@dataclass(frozen=True)
class World:
    """The ranks that came."""

    rank: int
    hosts: dict[int, str]
    """Rank -> the name of its machine."""
    asked: int = 1
    """How many ranks were started."""
    expected_hosts: list[str] = field(default_factory=list)
    """The job's machines, where the launcher tells."""
    store: Any = None

    @property
    def missing(self) -> list[int]:
        """The ranks that did not come."""
        return [rank for rank in range(self.asked) if rank not in self.hosts]

    @property
    def missing_hosts(self) -> list[str]:
        """The machines none of whose ranks came."""
        return [host for host in self.expected_hosts if host not in self.hosts.values()]

    @property
    def is_first_here(self) -> bool:
        """Whether this is the lowest rank of its machine."""
        return self.rank == min(rank for rank, host in self.hosts.items() if host == self.hosts[self.rank])

    @property
    def neighbours(self) -> list[int]:
        """One rank of each other machine."""
        first = {host: rank for rank, host in sorted(self.hosts.items(), reverse=True)}
        return sorted(rank for host, rank in first.items() if host != self.hosts[self.rank])

    def gather(self, value: Any) -> list[Any]:
        """Give every rank all ranks' values, in rank order; only where none is missing."""
        if self.asked == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.asked
        try:
            dist.all_gather_object(values, value)
        except RuntimeError as error:  # what gloo raises when a rank is gone
            raise LaunchError(f"rank {self.rank} on {self.hosts[self.rank]} lost another rank: {error}") from None
        return values

    def collect(self, value: Any) -> dict[int, Any]:
        """Give rank 0 the value (JSON) of every rank that came and tells it in time; the others get nothing."""
        if self.asked == 1:
            return {0: value}
        self.store.set(f"told/{self.rank}", json.dumps(value))
        ends = monotonic() + _SECONDS_TO_TELL
        told: dict[int, Any] = {}
        while self.rank == 0 and len(told) < len(self.hosts) and monotonic() < ends:
            waiting = [rank for rank in self.hosts if rank not in told and self.store.check([f"told/{rank}"])]
            told |= {rank: json.loads(self.store.get(f"told/{rank}")) for rank in waiting}
            sleep(0.02)
        if self.rank == 0:
            self.store.set("heard", "")
        else:
            with suppress(RuntimeError):  # rank 0 has ended
                self.store.wait(["heard"], timedelta(seconds=_SECONDS_TO_TELL + _GRACE_SECONDS))
        return told


def join(timeout: float) -> World:
    """Meet the other ranks: over the launcher's variables, or under plain `srun` on the first machine of the step.

    Args:
        timeout: Seconds to wait for them.

    Raises:
        LaunchError: Rank 0 does not answer, or the launcher started another world than it was asked for.
    """
    rank, asked, host = launched_rank(), _asked(), socket.gethostname()
    if asked == 1:
        return World(rank=0, hosts={0: host})
    expected = _slurm_hosts()
    store = _store(rank, expected, timeout)
    store.set(f"here/{rank}", host)
    hosts = _call_the_roll(store, rank, asked, timeout)
    world = World(rank, hosts, asked, expected, store)
    if not world.missing:
        import torch.distributed as dist

        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=asked, timeout=timedelta(seconds=timeout + _GRACE_SECONDS)
        )
    return world


def _asked() -> int:
    """How many ranks were started; unlike train.py, plain `srun` will do."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    return tasks if tasks > 1 and "WORLD_SIZE" not in os.environ else asked_world_size()


def _store(rank: int, slurm_hosts: list[str], timeout: float) -> Any:
    import torch.distributed as dist

    address = os.environ.get("MASTER_ADDR") or (slurm_hosts or ["127.0.0.1"])[0]
    port = int(os.environ.get("MASTER_PORT") or _DEFAULT_PORT + int(os.environ.get("SLURM_JOB_ID", "0")) % 20000)
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's agent is the master already
    try:
        store = dist.TCPStore(
            address,
            port,
            is_master=rank == 0 and not hosted,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
        )
    except RuntimeError as error:
        what = "cannot listen at" if rank == 0 and not hosted else f"got no answer within {timeout:.0f} s from"
        reason = str(error).strip().split("\n")[0]
        raise LaunchError(
            f"rank {rank} on {socket.gethostname()} {what} {address}, port {port}: {reason}",
            fix="Check the first machine's name, its firewall and that port.",
        ) from None
    return dist.PrefixStore(_PREFIX, store)


def _call_the_roll(store: Any, rank: int, asked: int, timeout: float) -> dict[int, str]:
    if rank == 0:
        ends = monotonic() + timeout
        hosts: dict[int, str] = {}
        while len(hosts) < asked and monotonic() < ends:
            came = [other for other in range(asked) if other not in hosts and store.check([f"here/{other}"])]
            hosts |= {other: store.get(f"here/{other}").decode() for other in came}
            sleep(0.02)
        store.set("roll", json.dumps(hosts))
        return dict(sorted(hosts.items()))
    try:
        store.wait(["roll"], timedelta(seconds=timeout + _GRACE_SECONDS))
    except RuntimeError:
        raise LaunchError(
            f"rank {rank} on {socket.gethostname()} waited {timeout + _GRACE_SECONDS:.0f} s for rank 0."
        ) from None
    return {int(other): host for other, host in json.loads(store.get("roll")).items()}


def _slurm_hosts() -> list[str]:
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST")
    if not nodes or not shutil.which("scontrol"):
        return []
    asked = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=False)
    return asked.stdout.split()
