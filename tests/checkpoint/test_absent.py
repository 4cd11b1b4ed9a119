"""What stands for optimizer state that a checkpoint lacks."""

from onecurve.checkpoint.absent import Absent, absent_state, without
from onecurve.checkpoint.manifest import Stored


def stored(*shape, dtype="float32"):
    numel = 1
    for size in shape:
        numel *= size
    return Stored(shape, numel, dtype, ())


PARAMETERS = {"param/used": stored(3, 4), "param/idle": stored(5)}
ADAMW = {"exp_avg/used": stored(3, 4), "step/used": stored()}


def test_moments_are_zero_and_counts_are_the_others():
    found = absent_state({**PARAMETERS, **ADAMW, "best/used": stored(3, 4)})
    assert found == {"exp_avg/idle": Absent((5,), "float32", ""), "step/idle": Absent((), "float32", "step/used")}


def test_nothing_is_absent_where_no_parameter_has_state():
    assert absent_state(PARAMETERS) == {}


def test_what_has_some_of_its_state_is_damaged_and_not_filled_in():
    assert absent_state({**PARAMETERS, **ADAMW, "step/idle": stored()}) == {}


def test_shapes_that_do_not_follow_the_parameter_are_not_guessed():
    assert absent_state({**PARAMETERS, "row_var/used": stored(3, 1), "step/used": stored()}) == {}


def test_without_leaves_out_all_of_a_parameter():
    assert without({**PARAMETERS, **ADAMW}, ["used"]) == {"param/idle": PARAMETERS["param/idle"]}
