"""A profile says where a step's time goes, on every rank, and moves nothing."""

import gzip
import json
import re

import pytest

from onecurve.ranks.heartbeat import beat, listen
from onecurve.tracking.profile import _covered, _Phases
from tests.launching import write_recipe
from tests.resume.curves import partings

pytestmark = pytest.mark.distributed
PHASES = {"data", "forward", "backward", "update", "between steps"}


@pytest.fixture(scope="module")
def recipe(tiny_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    rows = [{"text": f"number {i} and its square {i * i}, " * (1 + i % 3)} for i in range(40)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_recipe(
        folder / "recipe.yaml",
        output_dir="unused",
        task={"name": "causal_lm"},
        model={"path": str(tiny_llama)},
        data={"train": str(folder / "train.jsonl"), "cache_dir": str(folder / "cache")},
        optim={"lr": 1e-3},
        train={"max_steps": 6, "global_batch_size": 8, "micro_batch_size": 2},
    )


def page(run):
    """Return the summary's first table: row -> cells, without shares."""
    lines = (run.output_dir / "profile" / "summary.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return lines, {row[0].strip("*`"): [re.sub(r" \(.*", "", cell) for cell in row[1:]] for row in rows}


def trace(run, rank):
    with gzip.open(run.output_dir / "profile" / f"trace-rank-{rank}.json.gz", "rt") as file:
        return json.load(file)["traceEvents"]


@pytest.mark.parametrize(
    ("how", "ranks"),
    [("python", 1), pytest.param("ddp", 2, marks=pytest.mark.slow), pytest.param("zero2", 2, marks=pytest.mark.slow)],
)
def test_it_says_where_the_time_went_and_moves_no_loss(forks, recipe, tmp_path, how, ranks):
    plain = forks.train(recipe, tmp_path / "plain", how, num_processes=ranks)
    run = forks.train(recipe, tmp_path / "profiled", how, "--tracking.profile", "2", num_processes=ranks)
    assert not [*partings(plain, run, exactly=True)]
    assert f"profile   of steps 4 to 5: {run.output_dir}/profile/summary.md" in run.stdout
    assert not (plain.output_dir / "profile").exists()
    lines, rows = page(run)
    assert f"Steps 4 to 5 on {ranks} rank(s), CPU" in lines[2]
    assert rows.keys() >= PHASES and len(rows["step"]) == ranks
    for rank in range(ranks):
        phases = sum(float(rows[phase][rank]) for phase in PHASES)
        assert 0 < phases == pytest.approx(float(rows["step"][rank]), abs=0.1)
        assert min(float(rows[name][rank]) for name in ("forward", "backward", "the optimizer's own step")) > 0
        ranges = [event["name"] for event in trace(run, rank) if event.get("cat") == "user_annotation"]
        passes = 2 * 8 / 2 / ranks
        assert [ranges.count(name) for name in ("forward", "backward", "update")] == [passes, passes, 2]
    if how == "ddp":
        assert min(float(cell) for cell in rows["collectives, also beside other work"]) > 0
    assert float(rows["aten::mm"][1]) > 0


@pytest.mark.slow
def test_a_short_run_is_measured_without_a_warm_up(forks, recipe, tmp_path):
    run = forks.train(recipe, tmp_path / "run", "python", "--tracking.profile", "9", "--train.max_steps", "2")
    assert "profile   of steps 1 to 2: " in run.stdout
    assert page(run)[1].keys() >= PHASES


@pytest.mark.slow
def test_a_run_that_ends_early_writes_what_there_is(forks, recipe, tmp_path):
    run = forks.train(recipe, tmp_path / "run", "python", "--tracking.profile", "3", "--train.stop_after", "4")
    assert "profile   of steps 4 to 4: " in run.stdout


def test_phases_add_up_and_time_covered_twice_counts_once():
    phases = _Phases()
    listen(phases.turn)
    for phase in ("forward", "backward", "forward"):
        beat(phase)
    listen(None)
    phases.end()
    beat("update")
    assert phases.seconds.keys() == {"forward", "backward"} and min(phases.seconds.values()) > 0

    class Event:
        def __init__(self, start, end):
            self.time_range = type("Range", (), {"start": start, "end": end})

    assert _covered([Event(0, 10), Event(5, 8), Event(9, 12), Event(20, 21)]) == pytest.approx(13e-6)
