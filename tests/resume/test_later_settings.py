"""A checkpoint from before a setting was there is of a run that had its default."""

from pathlib import Path

import pytest

from onecurve.config import RegularizationSection, curve_settings
from onecurve.errors import ConfigError
from onecurve.planning.changed_run import allowed_changes

STATE = {"curve": {"optim.lr": 0.1}, "recipe": {"eval": {}}, "best": {}, "step": 3, "max_steps": 9}


def curve(**keys):
    section = RegularizationSection(**keys).model_dump(mode="json")
    return {"optim.lr": 0.1, **curve_settings({"regularization": section})}


def test_a_checkpoint_without_the_section_goes_on_with_its_defaults():
    assert allowed_changes(Path("x"), STATE, curve(), []) == {}
    with pytest.raises(ConfigError, match=r"regularization\.layer_decay was None and is 0\.5"):
        allowed_changes(Path("x"), STATE, curve(layer_decay=0.5), [])
