"""Where a launch starts: a path and `never` begin a run once, and whoever starts the launch again does not undo it."""

import os
import shutil

import pytest
import torch

from onecurve.checkpoint import Alone, Retention, TensorWindow, Writer, choose_start
from onecurve.errors import ConfigError, LaunchError

JOB = {"SLURM_JOB_ID": "118"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)


def save(root, step, began=None, value=1.0):
    root.mkdir(parents=True, exist_ok=True)
    writer = Writer(root, Alone(), Retention(9))
    state = {"run_id": "r", "step": step} | ({} if began is None else {"began": began})
    writer.save(step, [TensorWindow("param/w", torch.full((2,), value), 0, 2, (2,))], state)
    writer.wait()
    return root / f"step-{step:08d}"


def start(resume, root):
    return choose_start(str(resume), root, Alone(), lambda line: None)


def damage(folder):
    (folder / "state.json").write_text("{}")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "run" / "checkpoints"


@pytest.fixture
def named(tmp_path):
    """A checkpoint of another run."""
    return save(tmp_path / "other" / "checkpoints", 2)


def test_auto_goes_on_and_keeps_how_the_run_began(root, monkeypatch):
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    begun = start("auto", root)
    assert (begun.folder, begun.began["from"], begun.began["by"]["job"]) == (None, None, "118")
    saved = save(root, 3, begun.began)
    monkeypatch.setenv("SLURM_JOB_ID", "119")
    again = start("auto", root)
    assert (again.folder, again.began) == (saved, begun.began)


def test_a_path_begins_a_run_once(root, named):
    begun = start(named, root)
    assert (begun.folder, begun.remark) == (named, "")
    save(root, 3, begun.began)
    newest = save(root, 5, begun.began)
    again = start(named, root)
    assert (again.folder, again.began) == (newest, begun.began)
    assert f"the run began from {named} and resumes" in again.remark


def test_the_checkpoint_is_known_by_what_it_holds_or_where_it_is_gone_by_its_path(root, named, tmp_path):
    newest = save(root, 5, start(named, root).began)
    moved = shutil.copytree(named, tmp_path / "moved")
    assert start(moved, root).folder == newest
    shutil.rmtree(named)
    assert start(named, root).folder == newest
    assert save(named.parent, 2, value=7.0) == named
    assert start(named, root).folder == named, "another one, in the same place"
    with pytest.raises(ConfigError, match="not a complete checkpoint"):
        start(tmp_path / "nowhere", root)


@pytest.mark.parametrize("began", [None, {"from": None, "by": {}}])
def test_checkpoints_of_another_run_are_not_gone_on_from(root, named, began):
    other = save(root, 5, began)
    assert start(named, root).folder == named
    damage(other)
    assert start(named, root).folder == named, "nor do they stop this one, bad as they are"
    assert other.exists()


def test_an_earlier_step_of_the_same_run_is_gone_back_to_once(root):
    earlier, later = save(root, 2), save(root, 5)
    begun = start(earlier, root)
    assert begun.folder == earlier
    shutil.rmtree(later)
    later = save(root, 4, begun.began)
    assert start(earlier, root).folder == later


def test_a_damaged_one_of_the_run_is_set_aside_for_the_one_before(root, named):
    begun = start(named, root)
    before, newest = save(root, 3, begun.began), save(root, 5, begun.began)
    (newest / "rank-00000-of-00001.safetensors").write_bytes(b"")
    assert start(named, root).folder == before
    assert not newest.exists()
    (before / "rank-00000-of-00001.safetensors").write_bytes(b"")
    with pytest.raises(LaunchError, match="No checkpoint is valid"):
        start(named, root)


@pytest.mark.parametrize(
    ("first", "second", "goes_on"),
    [
        ({}, {}, False),  # typed twice
        (JOB, JOB, False),  # typed twice within one allocation
        (JOB, JOB | {"SLURM_RESTART_COUNT": "1"}, True),
        (JOB | {"SLURM_RESTART_COUNT": "1"}, JOB | {"SLURM_RESTART_COUNT": "2"}, True),
        ({"SLURM_JOB_ID": "7"}, JOB | {"SLURM_RESTART_COUNT": "1"}, False),  # requeued before it had begun
        ({}, JOB | {"SLURM_RESTART_COUNT": "1"}, False),
        ({"TORCHELASTIC_RUN_ID": "a"}, {"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_RESTART_COUNT": "1"}, True),
        ({"TORCHELASTIC_RUN_ID": "a"}, {"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_RESTART_COUNT": "0"}, False),
        ({"TORCHELASTIC_RUN_ID": "a"}, {"TORCHELASTIC_RUN_ID": "b", "TORCHELASTIC_RESTART_COUNT": "1"}, False),
        ({"TORCHELASTIC_RUN_ID": "none"}, {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "1"}, True),
        (  # torchrun in a job that is requeued: another torchrun, and the same job
            JOB | {"TORCHELASTIC_RUN_ID": "a"},
            JOB | {"TORCHELASTIC_RUN_ID": "b", "SLURM_RESTART_COUNT": "1"},
            True,
        ),
        (  # restarted by torchrun in an allocation in which an earlier torchrun began the run
            JOB | {"TORCHELASTIC_RUN_ID": "a"},
            JOB | {"TORCHELASTIC_RUN_ID": "b", "TORCHELASTIC_RESTART_COUNT": "1"},
            False,
        ),
    ],
)
def test_never_begins_anew_but_where_its_own_launch_is_started_again(root, monkeypatch, first, second, goes_on):
    with monkeypatch.context() as environment:
        for name, value in first.items():
            environment.setenv(name, value)
        begun = start("never", root)
    assert begun.folder is None
    saved = save(root, 3, begun.began)
    for name, value in second.items():
        monkeypatch.setenv(name, value)
    again = start("never", root)
    assert again.folder == (saved if goes_on else None)
    assert bool(again.remark) == goes_on
    assert (again.began == begun.began) or not goes_on


def test_another_agent_of_torchruns_static_rendezvous_is_another_launch(root, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    begun = start("never", root)
    save(root, 3, begun.began)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setattr(os, "getppid", os.getpid)
    assert start("never", root).folder is None


def test_latest_names_a_checkpoint_to_start_from_and_a_run_that_began_there_resumes(root, tmp_path):
    other = tmp_path / "another"
    save(other, 1)
    first = start(other / "latest", root)
    assert first.folder == other / "step-00000001"
    ours = save(root, 2, first.began, value=2.0)
    save(other, 3, value=3.0)  # that run goes on
    assert start(other / "latest", root).folder == ours
    shutil.rmtree(other)
    assert start(other / "latest", root).folder == ours
    with pytest.raises(ConfigError, match="is not a complete checkpoint"):
        start(other / "latest", tmp_path / "new")
