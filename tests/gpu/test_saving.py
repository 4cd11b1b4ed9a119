"""A save from a CUDA device: with a copy in host memory while training goes on, without one after the last step."""

import pytest
import torch

from onecurve.checkpoint import Alone, Retention, TensorWindow, Writer, load, verify

pytestmark = pytest.mark.gpu


def pieces(device, fill=None):
    values = torch.arange(3_000_001, dtype=torch.float32, device=device) if fill is None else None
    values = torch.full((3_000_001,), fill, device=device) if values is None else values
    return [TensorWindow("param/w", values, 0, values.numel(), (values.numel(),))]


@pytest.mark.parametrize("last", [False, True])
def test_what_lies_on_a_device_is_saved_and_only_training_needs_a_copy(tmp_path, last):
    writer = Writer(tmp_path, Alone(), Retention())
    writer.save(1, pieces("cuda"), {}, last=last)
    (report,) = writer.wait()
    assert report.error == ""
    assert sum(piece.numel() for piece in writer.staging.pinned) == (0 if last else 4 * 3_000_001)
    assert verify(tmp_path / "step-00000001") == []
    read = pieces("cpu", fill=0.0)
    load(tmp_path / "step-00000001", read)
    assert torch.equal(read[0].values, pieces("cpu")[0].values)


def test_what_is_not_finite_on_a_device_is_refused_without_a_copy_too(tmp_path):
    writer = Writer(tmp_path, Alone(), Retention(), "continue")
    writer.save(1, pieces("cuda", fill=float("nan")), {}, last=True)
    (report,) = writer.wait()
    assert "param/w is not finite" in report.error
