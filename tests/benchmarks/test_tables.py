"""A comparison's rows: which steps count, what a save cost, and who is refused."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from tables import SAVE_SHADOW, WARM_UP_STEPS, Rounds, differences, markdown, row, save_step
from watching import Measured

STEPS = 14
LOSSES = [5 - 0.1 * step for step in range(STEPS)]
SAVES = [save_step(number, STEPS) for number in range(2)]


def run(step_seconds: float = 1.0, save: int = 0, save_seconds: float = 0.0) -> Measured:
    moments, now = [], 10.0
    for step in range(1, STEPS + 1):
        moments.append(now)
        now += step_seconds + (save_seconds if step == save else 0)
    ended = moments[-1] + 3
    return Measured(LOSSES, moments, moments[-1] + 2, ended, [moment / 2 for moment in moments], 10**9)


def rounds(label: str, step_seconds: float, save_seconds: float = 0.0) -> Rounds:
    return Rounds(label, [run(step_seconds, save, save_seconds) for save in SAVES], SAVES)


def test_each_round_saves_elsewhere_and_leaves_steps_to_count():
    shadows = [set(range(save + 1, save + 1 + SAVE_SHADOW)) for save in SAVES]
    assert not shadows[0] & shadows[1] and all(max(shadow) <= STEPS for shadow in shadows)
    steady = rounds("a", 1).steady(0)
    assert min(steady) == WARM_UP_STEPS + 1 and not set(steady) & shadows[0] and len(steady) >= 6


def test_a_row_has_the_paired_ratios_and_what_a_save_cost():
    ours, theirs = rounds("ours", 1.0, 0.25), rounds("theirs", 2.0, 4.0)
    found = row(theirs, ours, [100] * STEPS, "no")
    assert found["tokens_per_second"] == pytest.approx([50, 50])
    assert found["ours_over_theirs"]["tokens_per_second"] == pytest.approx([2, 2])
    assert found["ours_over_theirs"]["first_step_seconds"] == [1, 1]
    assert found["save_seconds"] == pytest.approx([4, 4])
    assert found["eval_seconds"] == pytest.approx([2, 2])
    assert found["processor_seconds"] == pytest.approx([10, 10])
    assert row(ours, ours, [100] * STEPS, "no")["save_seconds"] == pytest.approx([0.25, 0.25])
    assert "| theirs | 50 (2.00: 2.00 to 2.00) |" in markdown("t", [found])


@pytest.mark.parametrize("losses", [[LOSSES[0] + 1e-3, *LOSSES[1:]], [*LOSSES[:-1], 5.0]])
def test_other_losses_make_a_row_void(losses):
    ours, theirs = rounds("ours", 1.0), rounds("theirs", 2.0)
    theirs.runs[1] = replace(theirs.runs[1], losses=losses)
    found = row(theirs, ours, [100] * STEPS, "no")
    assert found["void"]
    assert "void: its losses are others" in markdown("t", [found])


def test_a_run_of_fewer_steps_is_no_run_of_the_same_work():
    assert differences(replace(run(), losses=LOSSES[:-1]), run()) == (0, 1)


def test_runs_are_paired_with_ours_of_the_same_round():
    ours = Rounds("ours", [run(1.0), run(2.0), run(9.0)], [*SAVES, SAVES[0]])
    theirs = Rounds("theirs", [run(3.0), run(3.0)], ours.saves)
    assert row(theirs, ours, [100] * STEPS, "no")["ours_over_theirs"]["tokens_per_second"] == pytest.approx([3, 1.5])


def test_rounding_makes_no_row_void():
    ours, theirs = rounds("ours", 1.0), rounds("theirs", 2.0)
    theirs.runs[1] = replace(theirs.runs[1], losses=[loss * (1 + 1e-7) for loss in LOSSES])
    assert not row(theirs, ours, [100] * STEPS, "no")["void"]


def test_one_round_has_no_range():
    ours, theirs = (Rounds(label, [run(seconds)], [SAVES[0]]) for label, seconds in (("ours", 1.0), ("theirs", 2.0)))
    found = row(theirs, ours, [4000] * STEPS, "no")
    assert "| theirs | 2,000 (2.00) |" in markdown("t", [found])
    assert "| ours | 4,000 |" in markdown("t", [row(ours, ours, [4000] * STEPS, "no")])
