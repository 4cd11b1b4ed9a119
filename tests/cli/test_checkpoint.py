"""`onecurve checkpoint`: what a user sees of checkpoints."""

import os

import pytest
import torch

from onecurve.checkpoint import Alone, Retention, TensorWindow, Writer
from onecurve.cli import main


@pytest.fixture
def run_folder(tmp_path):
    """A run with steps 1 and 2, which differ in one element and one setting."""
    writer = Writer(tmp_path / "checkpoints", Alone(), Retention(9))
    weight, bias = torch.ones(2, 3), torch.zeros(4)
    for step in (1, 2):
        pieces = [
            TensorWindow(f"param/{n}", t.view(-1), 0, t.numel(), tuple(t.shape))
            for n, t in (("w", weight), ("b", bias))
        ]
        writer.save(step, pieces, {"run_id": "r", "lr": {"peak": step}, "seed": 0})
        writer.secure()
        weight[1, 2] = 1.5
    writer.wait()
    return tmp_path


def checkpoint(*arguments) -> int:
    return main(["checkpoint", *map(str, arguments)])


def test_list_names_good_bad_and_left_over(run_folder, capsys):
    root = run_folder / "checkpoints"
    (root / "step-00000003.bad").mkdir()
    (root / "step-00000001" / "manifest.json").write_text("{")
    assert checkpoint("list", run_folder) == 0
    bad, good, left = capsys.readouterr().out.splitlines()
    assert bad.startswith("step-00000001  bad: ")
    assert good == "step-00000002  0.0 MB  2 tensors  1 ranks  latest"
    assert left == "step-00000003.bad  no checkpoint: left over or set aside"


def test_verify_reads_all_or_one(run_folder, capsys):
    root = run_folder / "checkpoints"
    assert checkpoint("verify", run_folder) == 0
    assert capsys.readouterr().out == "step-00000001: good\nstep-00000002: good\n"
    file = root / "step-00000001" / "rank-00000-of-00001.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    assert checkpoint("verify", root) == 1
    bad, good = capsys.readouterr().out.splitlines()
    assert bad.startswith(f"step-00000001: {file.name} has ")
    assert good == "step-00000002: good"
    assert checkpoint("verify", root / "step-00000002") == 0
    (root / "step-00000002" / "manifest.json").unlink()
    assert checkpoint("verify", root / "step-00000002") == 1
    assert capsys.readouterr().out.splitlines()[-1] == "step-00000002: manifest.json is missing"


def test_show_tells_tensors_and_state(run_folder, capsys):
    assert checkpoint("show", run_folder) == 0
    said = capsys.readouterr().out
    assert "step 2, 0.0 MB, written by 1 ranks, run r" in said
    assert "param/w  float32 2 x 3  in 1 windows" in said
    assert '"peak": 2' in said


def test_diff_tells_where_two_differ(run_folder, capsys):
    root = run_folder / "checkpoints"
    assert checkpoint("diff", root / "step-00000001", root / "step-00000001") == 0
    assert capsys.readouterr().out == "no difference\n"
    assert checkpoint("diff", root / "step-00000001", run_folder) == 1
    assert capsys.readouterr().out.splitlines() == [
        "param/w: 1 elements, by 0.5 at most, 0.5 of the largest value",
        "state.json lr.peak: 1 and 2",
    ]


def test_diff_tells_what_only_one_has_and_other_shapes(run_folder, tmp_path, capsys):
    other = tmp_path / "other"
    writer = Writer(other, Alone(), Retention(9))
    pieces = [TensorWindow("param/w", torch.ones(5), 0, 5, (5,)), TensorWindow("new", torch.ones(1), 0, 1, (1,))]
    writer.save(1, pieces, {"run_id": "r", "lr": {"peak": 2}, "seed": 0})
    writer.wait()
    assert checkpoint("diff", run_folder, other) == 1
    a, b = run_folder / "checkpoints" / "step-00000002", other / "step-00000001"
    assert capsys.readouterr().out.splitlines() == [
        f"new is only in {b}",
        f"param/b is only in {a}",
        "param/w is float32 [2, 3] and float32 [5]",
    ]


@pytest.mark.parametrize("action", ["list", "verify", "show"])
def test_a_folder_without_checkpoints_is_the_users_mistake(tmp_path, capsys, action):
    assert checkpoint(action, tmp_path) == 2
    assert capsys.readouterr().err == f"onecurve checkpoint: {str(tmp_path)!r} has no checkpoints.\n"
    assert checkpoint(action, tmp_path / "absent") == 2


def test_only_leftovers_are_listed_and_not_shown(tmp_path, capsys):
    (tmp_path / "step-00000001.bad").mkdir()
    assert checkpoint("list", tmp_path) == 0
    assert checkpoint("show", tmp_path) == 2
    assert "has no complete checkpoint" in capsys.readouterr().err


def test_latest_is_a_checkpoint_and_a_run_that_has_saved_nothing_says_so(run_folder, tmp_path, capsys):
    assert checkpoint("verify", run_folder / "checkpoints" / "latest") == 0
    assert checkpoint("show", run_folder / "checkpoints" / "latest") == 0
    assert "step-00000002: good\n" in capsys.readouterr().out
    empty = tmp_path / "begun"
    empty.mkdir()
    (empty / "config.yaml").write_text("")
    (empty / "status.json").write_text("{}")
    assert checkpoint("convert", empty, tmp_path / "out", "--merge") == 2
    assert "has no checkpoint and no model/ yet" in capsys.readouterr().err
