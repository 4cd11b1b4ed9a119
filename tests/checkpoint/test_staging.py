"""A save beside a device that copies late: the values of its moment, out of page-locked memory in fixed pieces."""

import pytest
import torch
from safetensors import safe_open

from onecurve.checkpoint import staging
from onecurve.checkpoint.staging import Staging, window_key
from onecurve.checkpoint.tensors import TensorWindow


def piece(name, values, offset=0):
    return TensorWindow(name, values, offset, values.numel() + offset, (values.numel() + offset,))


def written(path, taken):
    taken.write(path, {}, lambda _: None)
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}


def test_a_save_has_the_values_of_its_moment(tmp_path, late_device):
    weights, moment, taken = torch.zeros(300), torch.zeros(50, dtype=torch.bfloat16), Staging()
    for number in (1, 2):  # the second save uses the first one's memory
        weights.fill_(number)
        moment.fill_(-number)
        taken.take([piece("weights", weights), piece("moment", moment)])
        taken.secure()
        weights.fill_(64)  # the next update, while nothing is written yet
        moment.fill_(64)
        taken.require_finite()
        found = written(tmp_path / f"{number}.safetensors", taken)
        assert found.keys() == {window_key("weights", 0), window_key("moment", 0)}
        assert bool((found[window_key("weights", 0)] == number).all())
        assert bool((found[window_key("moment", 0)] == -number).all())
        assert late_device.waits == number  # once a save


@pytest.mark.parametrize("sizes", [(9_000,), (5_000, 3_999, 8), (4_096,)])
def test_page_locked_memory_comes_in_pieces_so_that_rounding_takes_little_more(
    tmp_path, late_device, monkeypatch, sizes
):
    """In one piece, torch would lock 65536 bytes for 36000; and a window may lie in several pieces."""
    monkeypatch.setattr(staging, "_PINNED", 4096)
    tensors = {f"w{n}": torch.arange(size, dtype=torch.float32) + n for n, size in enumerate(sizes)}
    total, taken = sum(t.nbytes for t in tensors.values()), Staging()
    for _ in range(2):
        taken.take([piece(name, values) for name, values in tensors.items()])
        found = written(tmp_path / "a.safetensors", taken)
        assert all(torch.equal(found[window_key(name, 0)], values) for name, values in tensors.items())
        (tmp_path / "a.safetensors").unlink()
    assert late_device.blocks <= total + 4096
    assert late_device.spare == []


def test_a_larger_save_keeps_the_pieces_that_it_can_use(late_device, monkeypatch):
    monkeypatch.setattr(staging, "_PINNED", 4096)
    taken = Staging()
    for count, locked in ((100, 512), (1024, 4608), (3000, 12800), (100, 12800)):
        taken.take([piece("w", torch.zeros(count))])
        assert late_device.blocks == locked  # what became too small is let go of first, and stays with torch


def test_too_little_to_lock_is_the_error_that_messages_are_made_of(late_device):
    late_device.lockable = 1000
    with pytest.raises(RuntimeError, match="CUDA error: out of memory"):
        Staging().take([piece("w", torch.zeros(300))])


def test_the_last_save_locks_nothing(tmp_path, late_device):
    taken, values = Staging(), torch.arange(5.0)
    taken.take([piece("w", values)], copy=False)
    assert torch.equal(written(tmp_path / "a.safetensors", taken)[window_key("w", 0)], values)
    assert late_device.blocks == 0
