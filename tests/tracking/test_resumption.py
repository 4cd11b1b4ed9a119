"""A run that goes on is the same run to its trackers; each test needs the tracker itself."""

from uuid import uuid4

import pytest
from accelerate import PartialState, tracking

from onecurve.tracking.resumption import continuing, flattened


def started(tracker, name, run_id):
    PartialState()
    opened = tracker("curves", **continuing([name], "curves", run_id, "warm")[name])
    opened.start()
    return opened


def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlruns")
    run, other = uuid4().hex, uuid4().hex
    seen = []
    for run_id in (run, run, other):
        opened = started(tracking.MLflowTracker, "mlflow", run_id)
        opened.log({"train/loss": 1.0}, step=len(seen))
        seen.append(opened.tracker.info.run_id)
        opened.finish()
    assert seen[0] == seen[1] != seen[2]


def test_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run = uuid4().hex
    for _ in range(2):
        opened = started(tracking.WandBTracker, "wandb", run)
        assert opened.tracker.id == run
        opened.finish()


def test_others_are_told_nothing_they_do_not_know():
    told = continuing(["tensorboard", "wandb"], "curves", "0" * 32, "warm")
    assert told == {"wandb": {"id": "0" * 32, "resume": "allow", "name": "warm"}}


def test_values_of_a_recipe_are_given_by_dotted_key_in_kinds_that_every_tracker_takes():
    values = {"seed": 0, "data": {"columns": {}, "train": "a"}, "peft": None, "checkpoint": {"also": [1]}}
    assert dict(flattened(values | {"x": {"y": {"z": 0.5}}})) == {
        "seed": 0,
        "data.columns": "{}",
        "data.train": "a",
        "peft": "null",
        "checkpoint.also": "[1]",
        "x.y.z": 0.5,
    }
