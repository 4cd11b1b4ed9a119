"""An error that NCCL's own thread finds ends the run with a message, not with a SIGABRT; NCCL is stood in for."""

import os
import threading
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from onecurve.machine import backend_errors
from onecurve.ranks.liveness import Signs
from onecurve.ranks.watch import Watch
from tests.faults.test_liveness import sign


class Nccl:
    """Of a process group, as much as is asked: what its watchdog thread has found."""

    found = "SUCCESS"

    def name(self):
        return "nccl"

    def get_error(self):
        return SimpleNamespace(name=self.found)


class Group:
    _device_types = ("cuda",)

    def __init__(self):
        self.backend = Nccl()

    def _get_backend(self, device):
        return self.backend

    def _get_sequence_number_for_group(self):
        return 0


@pytest.fixture
def backend(monkeypatch):
    group = Group()
    monkeypatch.setitem(dist.distributed_c10d._world.pg_map, group, None)
    return group.backend


@pytest.fixture
def ended(monkeypatch):
    """The exit codes that the process would have had; whoever ends it waits for ever, as one that is gone does."""
    codes, gone = [], threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: (codes.append(code), gone.set(), threading.Event().wait(0.2)))
    return codes, gone


def test_errors_are_reported_and_end_nothing_where_torch_can_be_asked(monkeypatch):
    monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "")  # so that it is put back
    monkeypatch.delenv("TORCH_NCCL_ASYNC_ERROR_HANDLING")
    monkeypatch.setattr(dist, "ProcessGroupNCCL", object, raising=False)
    backend_errors.report_errors()
    assert "TORCH_NCCL_ASYNC_ERROR_HANDLING" not in os.environ  # nobody would ever end a run
    monkeypatch.setattr(dist, "ProcessGroupNCCL", Nccl)
    backend_errors.report_errors()
    assert os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "0"
    monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    backend_errors.report_errors()
    assert os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "1"


def test_what_a_backend_has_found_is_named(backend):
    assert backend_errors.error() == ""
    backend.found = "COMM_ERROR"
    assert backend_errors.error() == "nccl: COMM_ERROR"


@pytest.mark.parametrize("stopped", [False, True])
def test_ranks_that_load_are_guarded(backend, monkeypatch, stopped):
    monkeypatch.setattr(backend_errors, "_SECONDS_BETWEEN_LOOKS", 0.01)
    told, end = [], threading.Event()
    guard = backend_errors.Guard(lambda found: (told.append(found), end.set()))
    guard.start()
    if stopped:
        guard.stop()
    backend.found = "COMM_ERROR"
    end.wait(0.2 if stopped else 5)
    assert told == ([] if stopped else ["nccl: COMM_ERROR"])


def test_the_watch_ends_the_run_and_names_the_rank_of_another_machine(backend, ended, tmp_path):
    """The loop waits on the device for ever; without the backend's word only hang_timeout, of an hour, would end it."""
    codes, gone = ended
    told = []
    watch = Watch(tmp_path / "ranks", 0, 2, 3600.0, told.append, lambda: bool(told))
    watch.period = watch.patience = 0.02
    watch.signs.folder.mkdir()
    other = sign(1, ended="CUDA error: an illegal memory access was encountered")
    Signs(tmp_path / "ranks").leave(other)
    watch.start()
    try:
        assert not gone.wait(0.1)
        backend.found = "COMM_ERROR"
        assert gone.wait(5)
    finally:
        watch._stopped.set()
    assert codes[0] == 3
    assert "a rank was lost: rank 1 on" in told[0] and "illegal memory access" in told[0]
