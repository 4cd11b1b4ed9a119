"""Which precision a run computes in, and what is said of it, beside an accelerator."""

import pytest

from onecurve.config import TrainSection
from onecurve.machine.distributed import resolve_precision

SLOW = (
    "mixed_precision no: this late device multiplies float32 many times slower than bf16; "
    "train.mixed_precision auto takes bf16"
)


@pytest.mark.parametrize(
    ("asked", "native", "found", "said"),
    [
        ("no", ("bf16",), "no", SLOW),
        ("no", ("fp16",), "no", ""),
        ("auto", ("bf16",), "bf16", ""),
        ("auto", (), "no", "mixed_precision auto: this late device has no native bf16, so float32"),
        ("bf16", ("bf16",), "bf16", ""),
    ],
)
def test_precision_beside_an_accelerator(late_device, asked, native, found, said):
    late_device.precisions = native
    assert resolve_precision(TrainSection(mixed_precision=asked)) == (found, said)


def test_float32_on_a_cpu_needs_no_remark():
    assert resolve_precision(TrainSection()) == ("no", "")
