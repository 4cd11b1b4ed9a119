"""What is recorded of a launch, and what trackers are told of it."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import ProjectConfiguration

from onecurve.config import Recipe
from onecurve.config.sections.tracking import TRACKERS
from onecurve.errors import ConfigError
from onecurve.machine import optional_packages
from onecurve.machine.device import describe_launch
from onecurve.run.directory import RunDirectory
from onecurve.tracking import Tracker


def test_the_known_trackers_are_accelerate_s():
    assert TRACKERS.keys() == LOGGER_TYPE_TO_CLASS.keys()


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(optional_packages, "find_spec", lambda name: name == "tensorboardX" or None)
    with pytest.raises(ConfigError, match=r"tracking.trackers: wandb needs wandb. Install: pip install wandb"):
        optional_packages.require_trackers(["tensorboard", "wandb"])
    optional_packages.require_trackers(["tensorboard"])


@pytest.fixture
def opened(tmp_path, monkeypatch):
    directory = RunDirectory(tmp_path / "warm")

    def start(trackers, resumed=None, max_steps=3, log_every=1):
        recipe = Recipe.model_validate(
            {
                "output_dir": str(tmp_path / "warm"),
                "task": {"name": "text_classification"},
                "model": {"path": "some/model"},
                "data": {"train": "a.jsonl"},
                "train": {"max_steps": max_steps},
                "tracking": {"trackers": trackers, "log_every": log_every},
            }
        )
        if resumed is None:
            directory.take()
            directory.open("", 0)
        project = ProjectConfiguration(project_dir=str(directory.path))
        accelerator = Accelerator(cpu=True, log_with=trackers or None, project_config=project)
        return Tracker(directory, accelerator, recipe, SimpleNamespace(max_steps=max_steps), "0" * 32, resumed)

    return start


@pytest.mark.parametrize(
    ("max_steps", "log_every", "told"), [(12, 5, [1, 5, 10, 12]), (120, 2, [1, *range(3, 121, 3)])]
)
def test_a_log_without_a_terminal_is_as_quiet_as_asked_for(opened, capsys, monkeypatch, max_steps, log_every, told):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    tracker = opened([], None, max_steps, log_every)
    for step in range(1, max_steps + 1):
        tracker.train(step, {"loss": 1.0, "lr": 0.1, "num_tokens": 3, "seconds": 0.1})
    lines = re.findall(r"^step (\d+)/", capsys.readouterr().out, re.M)
    assert [int(step) for step in lines] == told


def test_device_strategy_and_precision_are_printed_and_recorded(opened, capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    opened([]).open("no", "", "a remark")
    assert capsys.readouterr().out == "device    cpu; computes in float32; torch finds no GPU\na remark\n"
    line = json.loads((tmp_path / "warm" / "metrics.jsonl").read_text())
    assert (line["event"], line["step"], line["precision"]) == ("launch", 0, "no")
    assert (line["device"], line["strategy"], line["processes"]) == ({"type": "cpu"}, "single", {"count": 1})


def test_a_gpu_is_named_with_the_ranks_and_what_auto_chose():
    facts = {"device": {"type": "cuda", "name": "NVIDIA H100"}, "strategy": "zero2", "processes": {"count": 8}}
    said = describe_launch(facts | {"precision": "bf16"}, "auto")
    assert said == "device    8 x NVIDIA H100, zero2; computes in bfloat16 (train.mixed_precision auto)"


@pytest.mark.parametrize(
    ("visible", "said"),
    [
        (None, "; torch finds no GPU"),
        ("", ""),  # hidden on purpose
        ("0", "; CUDA_VISIBLE_DEVICES is 0, but torch finds no GPU"),
    ],
)
def test_a_run_on_the_cpu_says_why(monkeypatch, visible, said):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    facts = {"device": {"type": "cpu"}, "strategy": "ddp", "processes": {"count": 2}, "precision": "no"}
    assert describe_launch(facts, "no") == f"device    2 x cpu, ddp; computes in float32{said}"


def test_a_tracker_is_given_the_recipe_once(opened, tmp_path):
    pytest.importorskip("tensorboard")
    read = lambda: [path.read_text() for path in (tmp_path / "warm").rglob("hparams.yml")]  # noqa: E731
    opened(["tensorboard"])
    (told,) = read()
    assert "optim.lr: 2.0e-05" in told
    assert "task.name: text_classification" in told
    goes_on = {"step": 2, "checkpoint": "x", "remarks": [], "from_cut": dict.fromkeys(("micro_batch_size",), 8)}
    goes_on["from_cut"] |= {"micro_batch_tokens": None, "group_by_length": False}
    opened(["tensorboard"], goes_on)
    assert read() == [told]


def test_generated_texts_are_shown_where_a_tracker_shows_text(opened, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told = {"row": 4, "prompt": "a | b\nc", "text": "d", "reference": "e"}
    tracker, _ = opened(["tensorboard"]), None
    tracker.scores("eval", 2, {"loss": 1.0, "samples": [told]})
    lines = map(json.loads, (tmp_path / "warm" / "metrics.jsonl").read_text().splitlines())
    assert [line["samples"] for line in lines if line["event"] == "eval"] == [[told]]
    (folder,) = {path.parent for path in (tmp_path / "warm").rglob("events.*") if path.parent.name == "onecurve"}
    events = EventAccumulator(str(folder)).Reload()
    (shown,) = events.Tensors("eval/samples/text_summary")
    table = shown.tensor_proto.string_val[0].decode().splitlines()
    assert shown.step == 2 and table[0] == "prompt | text | reference" and table[2] == r"a \| b<br>c | d | e"
