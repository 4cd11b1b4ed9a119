import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from onecurve.model.attention_kernels import fastest_attention

FLASH, EFFICIENT, MATH, CUDNN = (
    getattr(SDPBackend, name) for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH", "CUDNN_ATTENTION")
)


def order():
    """What torch tries, in order; what is switched off is left out."""
    off = set() if torch.backends.cuda.cudnn_sdp_enabled() else {CUDNN}
    return [kernel for kernel in map(SDPBackend, torch._C._get_sdp_priority_order()) if kernel not in off]


@pytest.mark.parametrize("of_torch", [[FLASH, EFFICIENT, MATH, CUDNN], [CUDNN, FLASH, EFFICIENT, MATH]])
@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
def test_on_a_gpu_cudnn_is_left_out_wherever_torch_has_it(monkeypatch, capability, of_torch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with sdpa_kernel(of_torch, set_priority=True):
        before = order()
        assert before[:4] == of_torch
        with fastest_attention(torch.device("cuda", 0)):
            assert order()[:3] == [FLASH, EFFICIENT, MATH]
            assert CUDNN not in order()
        assert order() == before


def test_a_cpu_is_left_alone():
    before = order()
    with fastest_attention(torch.device("cpu")):
        assert order() == before
