"""The report of a comparison: the table, the first differences, and the JSON."""

import json
from collections.abc import Iterator
from dataclasses import asdict

from onecurve.parity.comparison import Report
from onecurve.parity.distance import Distance, Largest
from onecurve.parity.verdict import NORM_FACTOR, Row
from onecurve.tracking.tracker import finite

_HEAD = (
    "launch form",
    "micro-batch",
    "samples",
    "loss",
    "gradient norm",
    "step-1 gradient",
    "parameters",
    "of the way",
    "trained",
    "",
)


def table(report: Report) -> str:
    """Write the report as text."""
    lines = [_HEAD, *map(_cells, report.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEAD))]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*_above(report), "", *rows, "", *_below(report)])


def to_json(report: Report) -> str:
    """Write the report with every number as it was measured; what is not finite is null."""
    values = asdict(report) | {"passed": report.passed}
    return json.dumps(finite(values), indent=1, allow_nan=False) + "\n"


def _above(report: Report) -> Iterator[str]:
    first, last = report.losses
    yield (
        f"{report.argv[0]} on {report.device}: {report.steps} steps; in one process the loss went from {first:.4f} to "
        f"{last:.4f}, and the gradient was clipped in {report.clipped} of them."
    )
    yield "Largest relative differences from one process with the same micro-batch size, from the same start:"


def _below(report: Report) -> Iterator[str]:
    limit = report.tolerance
    yield (
        f"Judged: equal samples; loss and step-1 gradient within {limit:g}, gradient norm within "
        f"{limit * NORM_FACTOR:g}; that it trained."
    )
    yield "Reported: parameters at the end, relative to their norm and to the way that training took them, where Adam"
    yield "turns noise in gradients near zero into whole updates."
    yield from (f"Not run: {line}." for line in report.not_held)
    yield from filter(None, map(_story, report.rows))
    yield "passed" if report.passed else "FAILED"


def _cells(row: Row) -> tuple[str, ...]:
    verdict = {True: "ok", False: "FAILED", None: "reported"}[row.passed]
    samples = {True: "equal", False: "differ", None: "-"}[row.samples_equal]
    return (
        row.form,
        str(row.micro_batch_size),
        samples,
        _largest(row.loss),
        _largest(row.grad_norm),
        _distance(row.gradient),
        _distance(row.parameters),
        "-" if row.of_the_way is None else f"{row.of_the_way:.1e}",
        {True: "yes", False: "NO", None: "-"}[row.trained],
        verdict + (f" (against {row.against})" if row.passed is None else ""),
    )


def _largest(found: Largest | None) -> str:
    if found is None:
        return "-"
    return f"{found.value:.1e} @ {found.step}" if found.value else "0"


def _distance(found: Distance | None) -> str:
    if found is None:
        return "-"
    return f"{found.relative:.1e}" if found.relative else "0"


def _story(row: Row) -> str:
    name = f"{row.form}, micro-batch {row.micro_batch_size}"
    parting = row.parting
    if parting is None:
        said = "nothing trained" if row.trained is False else row.note
        return f"{name}: {said.rstrip('.')}." if said else ""
    what = {"samples": "other samples", "grad_norm": "the gradient norm", "gradient": "the gradient"}
    told = f"{name} parts from {row.against} at step {parting.step}: {what.get(parting.measure, parting.measure)}"
    told += "" if parting.value is None else f" differs by {parting.value:.2e}"
    if parting.tensor is None:
        return f"{told}."
    kind = "weights" if parting.kind == "param" else "gradient"
    return f"{told}; most in the {kind} of {parting.tensor} ({parting.share:.2e} of the norm of all)."
