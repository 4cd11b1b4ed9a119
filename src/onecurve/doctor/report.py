"""The report as a table for people and as JSON for scripts."""

import json
from dataclasses import asdict

from onecurve.doctor.examination import Report, Said
from onecurve.doctor.world import World

_OF_ALL = ("presence", "matrix product", "slow ranks", "sum over the ranks")
"""What rank 0 says for all."""
_OF_MACHINES = ("memory", "hub")
"""What one rank of each machine says."""
_MARKS = {"ok": "", "warning": "warning", "failure": "FAILURE"}


def table(report: Report) -> str:
    """Return one line per finding: name, result, ranks if not all, severity, advice."""
    width = max(len(said.finding.name) for said in report.said)
    lines = []
    for said in report.said:
        finding = said.finding
        mark = f"{_MARKS[finding.level]}: " if _MARKS[finding.level] else ""
        advice = f"  -> {finding.advice}" if finding.advice and finding.level != "ok" else ""
        lines.append(f"{finding.name:<{width}}  {mark}{finding.value}{_who(said, report.world)}{advice}")
    counts = {level: sum(said.finding.level == level for said in report.said) for level in ("failure", "warning")}
    lines.append(f"{counts['failure']} failure(s), {counts['warning']} warning(s)")
    return "\n".join(lines)


def _who(said: Said, world: World) -> str:
    if len(said.ranks) == len(world.hosts) or (said.ranks == [0] and said.finding.name in _OF_ALL):
        return ""
    hosts: dict[str, list[int]] = {}
    for rank in said.ranks:
        hosts.setdefault(world.hosts[rank], []).append(rank)
    if said.finding.name in _OF_MACHINES and hosts.keys() == set(world.hosts.values()):
        return ""
    return f"  [{'; '.join(f'{host}: rank {_numbers(ranks)}' for host, ranks in hosts.items())}]"


def _numbers(ranks: list[int]) -> str:
    return (
        f"{ranks[0]}-{ranks[-1]}"
        if len(ranks) > 2 and ranks[-1] - ranks[0] == len(ranks) - 1
        else ", ".join(map(str, ranks))
    )


def to_json(report: Report) -> str:
    """Return every finding with the ranks that made it, the ranks' machines and the exit code."""
    content = {
        "exit_code": report.exit_code,
        "world_size": report.world.asked,
        "hosts": {str(rank): host for rank, host in report.world.hosts.items()},
        "missing": report.world.missing,
        "findings": [asdict(said.finding) | {"ranks": said.ranks} for said in report.said],
    }
    return json.dumps(content, indent=1) + "\n"
