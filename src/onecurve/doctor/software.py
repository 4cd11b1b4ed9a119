"""Versions: of Python and the packages that decide a curve, against the ranges this package declares."""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from onecurve import __version__
from onecurve.doctor.findings import Finding, Patient

_TOLD = ("torch", "transformers", "accelerate", "deepspeed", "peft", "datasets")


def check_software(patient: Patient) -> Iterator[Finding]:
    """Name the versions, those outside their range, and what differs between ranks."""
    yield Finding("system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    found = {"onecurve": __version__, "python": platform.python_version()}
    wrong = []
    for line in requires("onecurve") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed ({requirement.specifier})")
            continue
        found[requirement.name] = installed
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} is {installed}, not {requirement.specifier}")
    yield Finding("python", f"{found['python']}, onecurve {found['onecurve']}")
    for name in _TOLD:
        if name in found:
            yield Finding(name, found[name])
    yield Finding(
        "packages",
        "; ".join(wrong) or "all within their ranges",
        "failure" if wrong else "ok",
        "pip install -c constraints.txt -e ." if wrong else "",
    )
    if not patient.world.missing:
        yield from _compare(patient.world.gather(found))


def _compare(found: list[dict[str, str]]) -> Iterator[Finding]:
    names = sorted({name for versions in found for name in versions})
    for name in names:
        differing = {versions.get(name, "none") for versions in found}
        if len(differing) > 1:
            yield Finding(
                f"{name} differs",
                ", ".join(sorted(differing)),
                "failure",
                "Use one environment on all machines: other versions compute other numbers.",
            )
