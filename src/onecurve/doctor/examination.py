"""Runs every check on every rank, and reports on rank 0."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from onecurve.config import load_recipe
from onecurve.doctor.devices import check_devices
from onecurve.doctor.findings import Check, Finding, Patient
from onecurve.doctor.network import check_clocks, check_hub, check_names, check_ports
from onecurve.doctor.recipe import check_recipe
from onecurve.doctor.software import check_software
from onecurve.doctor.speed import check_speed
from onecurve.doctor.storage import check_shared, check_storage
from onecurve.doctor.world import World, join
from onecurve.errors import UserError

CHECKS: tuple[Check, ...] = (
    check_software,
    check_devices,
    check_storage,
    check_shared,
    check_names,
    check_ports,
    check_clocks,
    check_hub,
    check_speed,
    check_recipe,
)


@dataclass(frozen=True)
class Said:
    """A finding and the ranks that made it."""

    finding: Finding
    ranks: list[int]


@dataclass(frozen=True)
class Report:
    """What rank 0 tells."""

    world: World
    said: list[Said]

    @property
    def exit_code(self) -> int:
        """1 where anything failed."""
        return int(any(said.finding.level == "failure" for said in self.said))


def examine(recipe: list[str], timeout: float) -> Report:
    """Meet the other ranks, check everything, and tell rank 0.

    Args:
        recipe: A recipe's path and overrides; empty to examine the machines alone.
        timeout: Seconds to wait for the other ranks.

    Returns:
        On rank 0 what all ranks found; on the others nothing.

    Raises:
        LaunchError: The ranks cannot find each other.
    """
    world = join(timeout)
    patient = Patient(world, _folder(recipe), recipe)
    found = [*_check_presence(world, timeout)]
    for check in CHECKS:
        found += check(patient)
    told = world.collect([asdict(finding) for finding in found])
    silent = [rank for rank in world.hosts if rank not in told] if world.rank == 0 else []
    said: dict[Finding, list[int]] = {}
    for rank, findings in sorted(told.items()):
        for finding in findings:
            said.setdefault(Finding(**finding), []).append(rank)
    if silent:
        said[Finding("presence", f"ranks {silent} connected and then stopped responding", "failure")] = [0]
    # In the order of the checks, whoever found something first
    order = {name: place for place, name in enumerate(dict.fromkeys(finding.name for finding in said))}
    lines = sorted(said.items(), key=lambda item: order[item[0].name])
    return Report(world, [Said(finding, ranks) for finding, ranks in lines])


def _folder(recipe: list[str]) -> Path:
    path = Path.cwd()
    if recipe:
        try:
            path = Path(load_recipe(recipe)[0].output_dir).absolute()
        except UserError:  # said by `check_recipe`
            pass
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _check_presence(world: World, timeout: float) -> Iterator[Finding]:
    if world.rank != 0 or world.asked == 1:
        return
    if not world.missing:
        yield Finding("presence", f"all {world.asked} ranks on {len(set(world.hosts.values()))} machines")
        return
    told = f"ranks {', '.join(map(str, world.missing))} did not connect within {timeout:.0f} s"
    if world.missing_hosts:
        told += f"; none connected from {', '.join(world.missing_hosts)}"
    yield Finding(
        "presence",
        told,
        "failure",
        "Check that machine and the launcher's output; checks that need all ranks were skipped.",
    )
