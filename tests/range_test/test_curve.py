"""A range test's curve: its rates, where it stops, and what it suggests where the answer is known."""

import json
import random
from itertools import pairwise
from math import exp, inf, log10, nan

import pytest

from onecurve.errors import ConfigError
from onecurve.range_test.curve import KEPT, Curve, Running, averages, rate_at, smoothed
from onecurve.range_test.report import as_text, write
from onecurve.range_test.request import Asked
from tests.launching import ROOT, write_recipe

STEPS = 100
RATES = [rate_at(step, 1e-7, 1.0, STEPS) for step in range(1, STEPS + 1)]
STEEPEST, LOWEST = 1e-4, 3.5e-3


def known(scatter: float = 0.0) -> list[float]:
    """Losses that fall steepest at STEEPEST, are lowest near LOWEST, and explode beyond 3e-2."""
    draw = random.Random(5)
    places = [log10(rate) for rate in RATES]
    smooth = [2 - 1.5 / (1 + exp(-3 * (x + 4))) + 10 ** (3 * (x + 1.5)) for x in places]
    return [loss * (1 + scatter * draw.gauss(0, 1)) for loss in smooth]


def test_rates_rise_by_one_factor_from_the_first_to_the_last():
    assert RATES[0] == 1e-7 and RATES[-1] == pytest.approx(1.0)
    assert [later / rate for rate, later in pairwise(RATES)] == pytest.approx([10 ** (7 / 99)] * 99)


def test_the_running_average_is_the_weighted_mean_of_all_losses():
    losses = [3.0, 1.0, 2.0, 5.0]
    for count, found in enumerate(averages(losses), 1):
        weights = [KEPT ** (count - 1 - i) for i in range(count)]
        assert found == pytest.approx(sum(w * x for w, x in zip(weights, losses, strict=False)) / sum(weights))


def test_it_stops_above_four_times_the_lowest_average():
    running = Running()
    for _ in range(50):
        running.take(1.0)
    assert not running.has_risen
    running.take(30.9)  # the average is 1 + 29.9 / 10 / (1 - 0.9^51)
    assert running.value < 4.01
    running.take(8.0)
    assert running.has_risen
    below_zero = Running()
    for loss in (-1.0, 5.0, 50.0):
        below_zero.take(loss)
    assert not below_zero.has_risen


def test_smoothing_both_ways_lags_behind_nothing():
    bump = [exp(-(((i - 50) / 8) ** 2)) for i in range(101)]
    both, one = smoothed(bump), averages(bump)
    assert both.index(max(both)) == 50
    assert one.index(max(one)) > 53


@pytest.mark.parametrize("scatter", [0.0, 0.05])
def test_the_rates_of_a_known_curve_are_found(scatter):
    found = Curve(RATES, known(scatter), STEPS).suggestions()
    assert found["steepest"] == pytest.approx(STEEPEST, rel=0.5)
    assert found["minimum/10"] == pytest.approx(LOWEST / 10, rel=0.5)


def test_how_far_a_diverging_loss_is_off_moves_no_suggestion():
    end = next(i for i, loss in enumerate(known()) if loss > 4)
    near, far = (Curve(RATES[: end + 1], [*known()[:end], last], STEPS, "x").suggestions() for last in (5.0, 5e9))
    assert near == far and len(near) == 2


def test_a_curve_that_still_falls_at_its_end_has_no_minimum():
    curve = Curve(RATES[:50], known()[:50], 50)
    assert set(curve.suggestions()) == {"steepest"}
    assert curve.remarks() == ["the loss still falls at the highest rate: raise --to"]


@pytest.mark.parametrize(
    "losses",
    [
        [1.1] * 12,
        [random.Random(i).gauss(1, 0.1) for i in range(100)],
        [float(i) for i in range(1, 30)],
        [1.0, 0.5],
        [],
    ],
    ids=["flat", "scatters", "rises", "two steps", "none"],
)
def test_a_loss_that_never_falls_suggests_nothing(losses):
    curve = Curve(RATES[: len(losses)], losses, STEPS, "the loss is not finite")
    assert curve.suggestions() == {}
    assert curve.remarks()[0] == f"stopped after step {len(losses)} of 100: the loss is not finite"
    assert "never falls" in as_text(curve)


def test_a_test_that_made_no_step_is_written_without_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr("onecurve.range_test.report.find_spec", lambda name: name)  # as where matplotlib is there
    assert write(Curve([], [], STEPS, "the loss is not finite"), tmp_path, {}).endswith("no step was made")
    assert json.loads((tmp_path / "lr.json").read_text())["points"] == []


def test_the_curve_is_shown_and_written(tmp_path):
    curve = Curve(RATES, known(), STEPS)
    shown = as_text(curve).splitlines()
    assert max(map(len, shown)) <= 120
    heights = [[y for y, line in enumerate(shown) if line[12 + x : 13 + x] == "#" and "|" in line] for x in (0, 46)]
    assert heights[0] and heights[1] and min(heights[1]) > max(heights[0]), "the valley is not drawn below the start"
    told = write(curve, tmp_path, {"recipe": "r.yaml"})
    found = json.loads((tmp_path / "lr.json").read_text())
    assert found["suggestions"] == curve.suggestions() and found["recipe"] == "r.yaml"
    table = [line.split(",") for line in (tmp_path / "lr.csv").read_text().splitlines()]
    assert table[0] == ["step", "lr", "loss", "smoothed_loss"] and len(table) == 101
    assert [float(row[2]) for row in table[1:]] == curve.losses == [point["loss"] for point in found["points"]]
    assert (tmp_path / "lr.png").exists() != ("matplotlib is not installed" in told)


@pytest.mark.parametrize(
    ("first", "last", "steps", "also", "said"),
    [
        (0.0, 1.0, 100, {}, "--from: must be a number above 0; got 0."),
        (1e-7, inf, 100, {}, "--to: must be a number above 0; got inf."),
        (nan, 1.0, 100, {}, "--from: must be a number above 0; got nan."),
        (1e-3, 1e-4, 100, {}, "--to: must be above --from (0.001); got 0.0001."),
        (1e-7, 1.0, 9, {}, "--steps: must be 10 or more, to tell a curve; got 9."),
        (1e-7, 1.0, 10, {"train": {"max_steps": 1, "resume": "there"}}, "train.resume: the test starts from the model"),
        (1e-7, 1.0, 10, {"regularization": {"unfreeze_every": 5}}, "regularization.unfreeze_every: blocks that thaw"),
        (1e-7, 1.0, 10, {"optim": {"lrr": 5}}, "Unknown setting 'optim.lrr'"),
    ],
    ids=lambda value: None if isinstance(value, float | int) else "",
)
def test_what_no_rate_can_be_found_for_is_said_first(tmp_path, first, last, steps, also, said):
    with pytest.raises(ConfigError) as refused:
        Asked(first, last, steps).check([str(recipe(tmp_path, **also))])
    assert str(refused.value).startswith(said)


def test_a_loss_that_does_not_tell_what_is_learnt_is_refused():
    with pytest.raises(ConfigError, match=r"^task.name: the loss of grpo does not fall as its model learns"):
        Asked(1e-7, 1.0, 10).check([str(ROOT / "recipes" / "grpo.yaml")])


def recipe(folder, **sections):
    whole = {
        "output_dir": str(folder / "run"),
        "task": {"name": "text_classification"},
        "model": {"path": "m"},
        "data": {"train": "rows.jsonl", "eval": "rows.jsonl"},
        "train": {"max_steps": 4, "stop_after": 3, "on_spike": "skip"},
        **sections,
    }
    return write_recipe(folder / "recipe.yaml", **whole)


def test_its_run_is_the_recipe_s_but_for_rate_length_and_what_is_kept(tmp_path):
    also = {"optim": {"schedule": "wsd", "warmup_steps": 3, "betas1": 1}, "regularization": {"layer_decay": 0.5}}
    also["optim"].pop("betas1")
    also["regularization"] |= {"average": "ema", "label_smoothing": 0.1}
    asked = Asked(1e-7, 0.5, 20)
    checked = asked.check([str(recipe(tmp_path, **also))])
    run = asked.of_run(checked).recipe
    assert (run.train.max_steps, run.train.epochs, run.train.stop_after, run.train.on_spike) == (
        20,
        None,
        None,
        "ignore",
    )
    assert (run.optim.schedule, run.optim.warmup_steps, run.optim.lr) == ("constant", 0, 0.5)
    assert (run.regularization.average, run.regularization.layer_decay, run.regularization.label_smoothing) == (
        None, 0.5, 0.1,
    )  # fmt: skip
    assert run.data == checked.recipe.data and run.model == checked.recipe.model and run.seed == checked.recipe.seed
    told = "\n".join(asked.remarks(checked))
    assert "optim.schedule and optim.warmup_steps are not used" in told and "0.5 times that of the one above" in told
