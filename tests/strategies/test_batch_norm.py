"""A ResNet under ranks: one curve whatever its batch normalisation does, and on all ranks the same statistics."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.strategies.batch_norm_ranks import build

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def trained(forks, folder, how, what):
    folder.mkdir()
    ended = forks.run_script("tests.strategies.batch_norm_ranks", how, what, str(folder))
    assert ended.exit_code == 0, ended.stderr[-4000:]
    ranks = sorted(folder.glob("*.json"))
    assert len(ranks) == (1 if how == "python" else 2)
    return [(json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))) for path in ranks]


@pytest.mark.parametrize("what", ["frozen", "train"])
def test_ranks_draw_the_curve_of_one_process_and_agree_on_the_statistics(forks, tmp_path, what):
    ((curve, statistics),) = trained(forks, tmp_path / "python", "python", what)
    loaded = dict(build(what).named_buffers())
    moved = [name for name, value in statistics.items() if not torch.equal(value, loaded[name])]
    assert moved == ([] if what == "frozen" else [*statistics])
    assert len({loss for _, loss, _ in curve}) == len(curve), "nothing trained"
    for how in ("ddp", "zero2", "zero3"):
        (of_first, first), (of_second, second) = trained(forks, tmp_path / how, how, what)
        assert of_first == of_second
        for (fault, loss, norm), (wanted_fault, wanted, wanted_norm) in zip(of_first, curve, strict=True):
            assert fault == wanted_fault == ""
            assert (loss, norm) == (pytest.approx(wanted, rel=2e-6), pytest.approx(wanted_norm, rel=1e-5)), how
        for name, value in statistics.items():
            assert torch.equal(first[name], second[name]), f"{how}: {name}"
            assert torch.allclose(first[name], value, rtol=1e-5, atol=1e-6), f"{how}: {name}"
