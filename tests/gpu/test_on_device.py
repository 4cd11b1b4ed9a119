"""What computes outside of attention, on each device: chunked logits, rounding, staging, quantised layers, graphs."""

import copy

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn.functional import cross_entropy, linear
from transformers import LlamaConfig, LlamaForCausalLM

from onecurve.checkpoint.staging import Staging, window_key
from onecurve.checkpoint.tensors import TensorWindow
from onecurve.config import OptimSection
from onecurve.losses.cross_entropy import cross_entropy_sum, linear_cross_entropy_sum
from onecurve.machine import memory
from onecurve.model.compilation import compile_layers
from onecurve.optim import build_optimizer
from onecurve.optim.rounding import round_stochastically
from tests.gpu.devices import CPU_AND_GPU, GPU, GPU_AND_SLOWLY_CPU, apart

HALF = torch.bfloat16
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("device", CPU_AND_GPU)
def test_the_loss_of_chunked_logits_is_that_of_whole_ones(device, dtype, monkeypatch):
    chunk = {device: 64 * 1001}
    monkeypatch.setattr("onecurve.losses.cross_entropy._CHUNK_OF_ALL", chunk)
    monkeypatch.setattr("onecurve.losses.cross_entropy._CHUNK_ELEMENTS", chunk)
    torch.manual_seed(0)
    hidden, weight = torch.randn(200, 32), torch.randn(1001, 32) / 4
    targets = torch.randint(1001, (200,)).to(device)
    exact = [tensor.to(dtype).double().requires_grad_() for tensor in (hidden, weight)]
    loss = cross_entropy(linear(*exact), targets.cpu(), reduction="sum")
    loss.backward()
    tolerance = {torch.float32: 1e-5, HALF: 1e-2}[dtype]
    for of_logits in (False, True):
        inputs = [tensor.clone().to(device, dtype).requires_grad_() for tensor in (hidden, weight)]
        ours = cross_entropy_sum(linear(*inputs), targets) if of_logits else linear_cross_entropy_sum(*inputs, targets)
        ours.backward()
        assert float(ours) == pytest.approx(float(loss), rel=tolerance / 10)
        for mine, true in zip(inputs, exact, strict=True):
            assert apart(mine.grad, true.grad) < tolerance


@pytest.mark.parametrize("device", CPU_AND_GPU)
def test_rounding_is_to_a_neighbour_on_average_exact_and_the_same_again(device):
    values = torch.full((1 << 16,), 1 + 2**-10, device=device)  # an eighth of the way to the next bfloat16
    rounded = round_stochastically(values, 7)
    assert rounded.dtype == HALF and set(rounded.float().unique().tolist()) == {1.0, 1 + 2**-7}
    assert float(rounded.double().mean()) == pytest.approx(1 + 2**-10, abs=5e-5)
    assert torch.equal(rounded, round_stochastically(values, 7))
    assert not torch.equal(rounded, round_stochastically(values, 8))


@pytest.mark.parametrize("rounding", ["stochastic", "kahan", None])
@pytest.mark.parametrize("device", CPU_AND_GPU)
def test_small_updates_of_bfloat16_weights_are_not_lost_where_rounding_is_asked_for(device, rounding):
    """Each is a fortieth of the gap between bfloat16 values there."""
    layer = nn.Linear(64, 64, bias=False)
    nn.init.constant_(layer.weight, 1.25)
    layer = layer.to(device, HALF)
    optimizer = build_optimizer(layer, OptimSection(name="adamw", lr=2e-4, rounding=rounding))
    for step in range(100):
        torch.manual_seed(step)
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step()
    moved = 1.25 - float(layer.weight.detach().double().mean())
    assert moved == pytest.approx(0.02 if rounding else 0, abs=2**-8 + 1e-3)  # half of the gap; kahan carries the rest


@pytest.mark.parametrize("device", CPU_AND_GPU)
def test_a_save_has_the_values_of_its_moment_whatever_is_computed_before_and_after(device, tmp_path):
    size = 1 << 24 if device == "cuda" else 1 << 12
    busy = torch.randn(2048, 2048, device=device) if device == "cuda" else torch.randn(64, 64)
    weights, moment = (torch.zeros(size, device=device, dtype=dtype) for dtype in (torch.float32, HALF))
    staging = Staging()
    for number in (1, 2):  # the second save uses the first one's buffer
        for _ in range(20):  # so that the values are still to come when they are taken
            busy = torch.tanh(busy @ busy)
        weights += busy.sum().mul(0) + 1
        moment += 2
        staging.take(
            [TensorWindow("weights", weights, 0, size, (size,)), TensorWindow("moment", moment, 0, size, (size,))]
        )
        staging.secure()
        weights += 64  # the next update, while nothing is written yet
        moment += 64
        path = tmp_path / f"{number}.safetensors"
        staging.write(path, {}, lambda _: None)
        with safe_open(path, "pt") as file:
            expected = {"weights": 1 if number == 1 else 66, "moment": 2 if number == 1 else 68}
            for name, value in expected.items():
                assert bool((file.get_tensor(window_key(name, 0)) == value).all())


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("device", CPU_AND_GPU)
def test_a_quantised_layer_multiplies_by_its_weights(device, kind):
    bnb = pytest.importorskip("bitsandbytes", reason="needs the extra quant")
    torch.manual_seed(0)
    plain, x = nn.Linear(128, 256, bias=False), torch.randn(5, 128)
    if kind == "nf4":
        layer = bnb.nn.Linear4bit(128, 256, bias=False, quant_type="nf4", compute_dtype=torch.float32)
        layer.support_avx512bf16_for_cpu = False  # as `settle_quantized` has it
        layer.weight = bnb.nn.Params4bit(plain.weight.data.clone(), requires_grad=False, quant_type="nf4")
    else:
        layer = bnb.nn.Linear8bitLt(128, 256, bias=False, has_fp16_weights=False)
        layer.weight = bnb.nn.Int8Params(plain.weight.data.clone(), requires_grad=False, has_fp16_weights=False)
    layer = layer.to(device)
    ours = x.clone().to(device).requires_grad_()
    layer(ours).square().sum().backward()
    theirs = x.clone().requires_grad_()
    plain(theirs).square().sum().backward()
    # Four bits keep a tenth of a normal weight uncertain, eight bits less than a hundredth
    assert apart(layer(x.to(device)), plain(x)) < {"nf4": 0.12, "int8": 0.02}[kind]
    assert apart(ours.grad, theirs.grad) < {"nf4": 0.2, "int8": 0.03}[kind]


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("device", GPU_AND_SLOWLY_CPU)
def test_compiled_layers_have_the_gradients_of_uncompiled_ones(device, dtype):
    torch.manual_seed(0)
    plain = LlamaForCausalLM(LlamaConfig(vocab_size=67, **SIZES)).to(device).train()
    compiled = copy.deepcopy(plain)
    compile_layers(compiled)
    for length in (24, 31):
        ids = torch.randint(67, (2, length), generator=torch.Generator().manual_seed(1)).to(device)
        for model in (plain, compiled):
            model.zero_grad()
            with torch.autocast(device, HALF, enabled=dtype == HALF):
                logits = model(input_ids=ids, use_cache=False).logits
            logits.float().square().mean().backward()
        for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
            assert apart(ours.grad, theirs.grad) < {torch.float32: 1e-4, HALF: 3e-2}[dtype]


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
def test_what_ran_out_is_read_from_what_cuda_really_says(device):
    total = memory.total(torch.device(device, 0))
    with pytest.raises(RuntimeError) as of_gpu:
        torch.empty(4 * total, dtype=torch.uint8, device=device)
    assert memory.ran_out(of_gpu.value)
    assert memory.asked(of_gpu.value) == pytest.approx(4 * total, rel=1e-2)
    assert 0 < memory.left(of_gpu.value) <= total
    assert not memory.ran_out_of_pinned(of_gpu.value, torch.device(device, 0))
    with pytest.raises(RuntimeError) as of_host:  # more than there are addresses: nothing is locked meanwhile
        torch.empty(1 << 49, dtype=torch.uint8, pin_memory=True)
    assert memory.ran_out_of_pinned(of_host.value, torch.device(device, 0)), str(of_host.value)
