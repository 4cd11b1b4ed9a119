"""Names, ports and clocks of the machines, and the Hugging Face hub."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing

from onecurve.doctor.findings import Finding, Patient
from onecurve.doctor.world import World
from onecurve.machine.hub import reachable

_CONNECT_SECONDS = 5
_CLOCKS_MAY_DIFFER = 1.0
"""Seconds."""


def check_hub(patient: Patient) -> Iterator[Finding]:
    """Say whether this machine can ask the hub."""
    from huggingface_hub import constants

    if not patient.world.is_first_here:
        return
    if constants.HF_HUB_OFFLINE:
        yield Finding("hub", "offline, because HF_HUB_OFFLINE is set")
    elif reachable():
        yield Finding("hub", f"{constants.ENDPOINT} answers")
    else:
        yield Finding(
            "hub",
            f"{constants.ENDPOINT} cannot be reached: local copies only",
            "warning",
            "Fetch what the run needs on a machine with a network: `onecurve data stage RECIPE`.",
        )


def check_names(patient: Patient) -> Iterator[Finding]:
    """Say whether this machine's own name and those of the others can be resolved."""
    world = patient.world
    several = len({*world.hosts.values(), *world.expected_hosts}) > 1
    unknown = [host for host in dict.fromkeys([*world.hosts.values(), *world.expected_hosts]) if not addresses(host)]
    if unknown:
        told = f"{', '.join(unknown)} cannot be resolved"
        advice = "Add to /etc/hosts or DNS." if several else "Only runs on several machines need it."
        yield Finding("names", told, "failure" if several else "warning", advice)
        return
    own = addresses(socket.gethostname())
    if several and all(address.startswith(("127.", "::1")) for address in own):
        yield Finding(
            "names",
            f"{socket.gethostname()} is {own[0]} to itself: gloo would wait for the others there",
            "failure",
            "Give it its network address in /etc/hosts, or set GLOO_SOCKET_IFNAME.",
        )
    else:
        yield Finding("names", "all machines' names resolve")


def addresses(host: str) -> list[str]:
    """Resolve a name; empty where that fails."""
    try:
        return sorted({str(found[4][0]) for found in socket.getaddrinfo(host, None)})
    except OSError:
        return []


def check_ports(patient: Patient) -> Iterator[Finding]:
    """Say whether each machine can open a connection to a free port of each other machine."""
    world = patient.world
    if world.missing:
        return
    with closing(socket.create_server(("", 0))) as server:
        ports = world.gather(server.getsockname()[1])
        closed = [f"{world.hosts[rank]}:{ports[rank]}" for rank in world.neighbours if not _opens(world, rank, ports)]
        world.gather(None)  # all have tried
    if closed:
        told = f"no connection to {', '.join(closed)}"
        yield Finding("ports", told, "failure", "Open all ports between the job's machines; look at the firewall.")
    elif world.neighbours:
        yield Finding("ports", "open between all machines")


def _opens(world: World, rank: int, ports: list[int]) -> bool:
    try:
        socket.create_connection((world.hosts[rank], ports[rank]), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def check_clocks(patient: Patient, clock: Callable[[], float] | None = None) -> Iterator[Finding]:
    """Say how far this rank's clock is from rank 0's, measured when a gather has just ended on both.

    No run depends on it; people who compare logs do.
    """
    world = patient.world
    if world.missing or world.asked == 1:
        return
    world.gather(None)
    clocks = world.gather((clock or time.time)())
    ahead = clocks[world.rank] - clocks[0]
    if abs(ahead) > _CLOCKS_MAY_DIFFER:
        told = f"{abs(ahead):,.1f} s {'ahead of' if ahead > 0 else 'behind'} {world.hosts[0]}'s (rank 0)"
        yield Finding("clock", told, "warning", "Start NTP: runs do not need it, but times in logs will differ.")
    else:
        yield Finding("clock", "same as rank 0's")
