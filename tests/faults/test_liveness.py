"""Whom the others wait for, told from what ranks said; which errors mean that a rank is lost."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from torch.distributed import DistBackendError, distributed_c10d

from onecurve.machine.run_lock import ourselves
from onecurve.ranks.heartbeat import beat, last_beat
from onecurve.ranks.liveness import Sign, Signs, late, lost, tell
from onecurve.ranks.lost_rank import RankLost, is_loss
from onecurve.ranks.watch import Watch

US = ourselves()


def sign(rank, beats=100, collectives=50, number=1, **fields):
    return Sign(rank, US, number, 7, "backward", beats, collectives, 30.0, **fields)


def looks(*second):
    """Two looks at ranks that all left another sign in between, but for those numbered 1."""
    return {s.rank: replace(s, number=1) for s in second}, {s.rank: s for s in second}


def ranks_of(culprits):
    return [sign.rank for sign in culprits]


@pytest.mark.parametrize(
    ("second", "blamed"),
    [
        ([sign(0, number=2), sign(1, number=2, beats=98)], [1]),
        ([sign(0, number=2), sign(1, number=2, collectives=49)], [1]),
        ([sign(0, number=2, collectives=49), sign(1, number=2, beats=98, collectives=60)], [1]),
        ([sign(0, number=2), sign(1, number=2)], [0, 1]),
        ([sign(0, number=2, beats=3), sign(1, number=1)], [1]),
        ([sign(0, number=2), sign(1, number=1), sign(2, number=2, ended="out of memory")], [2]),
    ],
)
def test_who_is_late(second, blamed):
    assert ranks_of(late(*looks(*second))) == blamed


def test_a_process_that_has_ended_is_lost_but_not_one_on_another_machine(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    gone = replace(US, pid=process.pid)
    process.wait()
    signs = [sign(0), replace(sign(1), process=gone), replace(sign(2), process=replace(gone, machine="another"))]
    assert ranks_of(lost(signs)) == [1]
    assert f"rank 1 on {gone.host} (process {gone.pid}) is gone" in tell(signs[1:2], set(), Signs(tmp_path))


def test_what_is_left_is_read_back_and_taken_away(tmp_path):
    signs = Signs(tmp_path / "ranks")
    signs.leave(sign(3))
    assert signs.read(range(9)) == {}, "the run directory is not begun anew"
    signs.folder.mkdir()
    signs.leave(sign(3))
    signs.path(4).write_text("{")
    assert signs.read(range(9)) == {3: sign(3)}
    signs.remove(4)
    signs.remove(3)
    assert not signs.folder.exists()


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (RankLost("gone"), True),
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (
            DistBackendError("NCCL error in: ... remote process exited or there was a network error, ncclRemoteError"),
            True,
        ),
        (DistBackendError("NCCL error in: ... invalid usage, ncclInvalidUsage"), False),
        (ValueError("gloo/transport/"), False),
    ],
)
def test_which_errors_mean_that_a_rank_is_lost(error, is_one):
    assert is_loss(error) == is_one


def test_a_beat_keeps_the_step_and_counts():
    beat("data", 12)
    before = last_beat()
    beat("forward")
    assert last_beat() == (before.beats + 1, "forward", 12)
    beat("backward", 13)
    assert last_beat() == (before.beats + 2, "backward", 13)


def test_an_unforeseen_error_is_told_once_and_does_not_end_the_watch(tmp_path, monkeypatch, capsys):
    watch = Watch(tmp_path / "ranks", 0, 1, 60.0, lambda message: None, lambda: False)
    watch.period, looks = 0.001, []

    def look():
        looks.append(1)
        if len(looks) > 5:
            watch._stopped.set()
        raise KeyError("unforeseen") if len(looks) < 5 else ValueError("another")

    monkeypatch.setattr(watch, "_look", look)
    watch._watch()
    said = capsys.readouterr().err
    assert len(looks) == 6 and said.count("KeyError: 'unforeseen'") == 1 and said.count("ValueError: another") == 1


def test_a_backend_that_does_not_count_its_collectives_does_not_end_the_watch(tmp_path, monkeypatch):
    class Counting:
        def _get_sequence_number_for_group(self):
            return 7

    class Other:
        def _get_sequence_number_for_group(self):
            raise RuntimeError("ProcessGroup mpi does not yet support sequence numbers.")

    monkeypatch.setattr(distributed_c10d, "_world", SimpleNamespace(pg_map={Counting(): 0, Other(): 0}))
    watch = Watch(tmp_path / "ranks", 0, 1, 60.0, lambda message: None, lambda: False)
    watch.signs.folder.mkdir()
    watch._look()
    assert watch.signs.read([0])[0].collectives == 7
