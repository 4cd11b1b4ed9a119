"""Layers that multiply in float8: which, what they compute, and that a token's share depends on no other's."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from onecurve.config import Recipe
from onecurve.errors import ConfigError, LaunchError
from onecurve.model import float8
from onecurve.model.float8 import compute_in_float8, describe_float8, in_full_precision
from onecurve.model.loading import check_model, load_model
from onecurve.tasks import load_task
from onecurve.tasks.base import Survey

installed = pytest.mark.skipif(find_spec("torchao") is None, reason="needs the extra fp8")
TOKENS, SIZE, OUT = 37, 64, 128


class Body(nn.Module):
    """One layer below a head, as transformers names them."""

    def __init__(self) -> None:
        super().__init__()
        self.base_model = nn.Sequential(nn.Linear(SIZE, OUT))


def layer() -> nn.Linear:
    torch.manual_seed(0)
    body = Body()
    compute_in_float8(body, emulated=True)
    return body.base_model[0]


def inputs() -> torch.Tensor:
    """Tokens of very different sizes, one of them zero."""
    torch.manual_seed(1)
    return torch.randn(TOKENS, SIZE) * torch.logspace(-3, 3, TOKENS)[:, None] * (torch.arange(TOKENS) != 5)[:, None]


def recipe(model: Path, **sections: Any) -> Recipe:
    train = {"max_steps": 1, "global_batch_size": 2, "micro_batch_size": 2, "mixed_precision": "fp8", "emulate": True}
    return Recipe.model_validate(
        {
            "output_dir": "unused",
            "task": {"name": "causal_lm"},
            "model": {"path": str(model)},
            "data": {"train": "unused"},
            **sections,
            "train": train | sections.get("train", {}),
        }
    )


def build(model: Path, **train: Any) -> Any:
    read = recipe(model, train=train)
    return load_model(read, load_task(read.task), AutoConfig.from_pretrained(model), Survey(), "fp8").train()


def rounded(values: torch.Tensor, dim: int | None) -> torch.Tensor:
    """Round to float8 (e4m3), scaled by a power of two so that the largest value along `dim` just fits."""
    largest = values.abs().amax(dim, keepdim=True) if dim is not None else values.abs().max()
    scale = torch.exp2(torch.floor(torch.log2(448 / largest.double().clamp_min(1e-12)))).float()
    return (values * scale).to(torch.float8_e4m3fn).float() / scale


@installed
def test_products_are_those_of_values_rounded_to_float8() -> None:
    linear, x, gradient = layer(), inputs().requires_grad_(), inputs().repeat(1, 2) * 1e-6
    y = linear(x)
    y.backward(gradient)
    weight = linear.weight.detach()
    of_input = rounded(gradient, 1) @ rounded(weight, None)
    torch.testing.assert_close(y, rounded(x.detach(), 1) @ rounded(weight, 1).t() + linear.bias, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad, of_input, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(linear.weight.grad, gradient.t() @ x.detach(), rtol=1e-5, atol=1e-9)
    exact = nn.functional.linear(x, weight, linear.bias)
    assert 1e-3 < float((y.detach() - exact.detach()).norm() / exact.norm()) < 0.05


@installed
def test_what_a_token_gives_does_not_depend_on_the_others_of_its_pass() -> None:
    def step(cut: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # Large tokens have small gradients: scaled by the largest, the others would vanish
        linear, x, gradient = layer(), inputs().requires_grad_(), inputs().repeat(1, 2).flip(0)
        outputs = [linear(part) for part in x.split(cut)]
        torch.autograd.backward(outputs, gradient.split(cut))
        return torch.cat(outputs), x.grad, linear.weight.grad

    for whole, parts in zip(step(TOKENS), step(5), strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6 * float(whole.abs().max()))


@installed
def test_under_autocast_all_else_is_bfloat16_on_any_device() -> None:
    linear = layer()
    with torch.autocast("cpu", torch.bfloat16):
        y = linear(inputs())
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert linear.weight.grad.dtype == linear.weight.dtype == torch.float32


@installed
def test_zero_3_can_release_a_weight_between_the_passes() -> None:
    linear = layer()
    y = linear(inputs())
    gathered, kept = StorageWeakRef(linear.weight.untyped_storage()), linear.weight.detach().clone()
    linear.weight.data = torch.empty(0)
    assert gathered.expired(), "something still holds the gathered weight"
    linear.weight.data = kept
    y.sum().backward()
    assert linear.weight.grad.shape == (OUT, SIZE)


@installed
def test_layers_below_the_head_with_fitting_sizes_are_converted_and_parameters_stay(tiny_llama: Path) -> None:
    model, plain = build(tiny_llama), LlamaForCausalLM.from_pretrained(tiny_llama)
    converted = {name for name, module in model.named_modules() if hasattr(module, "linear_mm_config")}
    linear = {name for name, module in plain.named_modules() if isinstance(module, nn.Linear)}
    assert converted == linear - {"lm_head"}
    assert describe_float8(model) == "float8    14 of 15 linear layers multiply in it"
    assert describe_float8(plain) == ""
    before, after = plain.state_dict(), model.state_dict()
    assert list(before) == list(after)
    assert all(before[name].dtype == after[name].dtype == torch.float32 for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before)


@installed
def test_sizes_that_do_not_fit_stay_as_they_were() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 120, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes))
    compute_in_float8(model, emulated=True)
    assert [type(module) is nn.Linear for module in model.model.layers[0].mlp.children()][:3] == [True] * 3
    assert describe_float8(model).startswith("float8    4 of 8 ")


@installed
def test_a_model_without_such_layers_is_refused() -> None:
    sizes = {"hidden_size": 72, "intermediate_size": 120, "num_hidden_layers": 1, "num_attention_heads": 4}
    for model in (
        GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=32, n_layer=1, n_head=2)),
        LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)),
    ):
        with pytest.raises(ConfigError, match=rf"below its head {type(model).__name__} has no linear layer"):
            compute_in_float8(model, emulated=True)


@installed
def test_layers_multiply_in_full_precision_for_a_while(tiny_llama: Path) -> None:
    model, plain = build(tiny_llama).eval(), LlamaForCausalLM.from_pretrained(tiny_llama).eval()
    ids = torch.arange(5, 37).view(2, 16)
    with torch.no_grad():
        expected, before = plain(ids).logits, model(ids).logits
        with in_full_precision(model):
            assert torch.equal(model(ids).logits, expected)
        assert not torch.allclose(before, expected, rtol=0, atol=1e-3)
        assert torch.equal(model(ids).logits, before)


@installed
@pytest.mark.parametrize("what", ["recompute", "selective", "offload"])
def test_whatever_activations_are_kept_the_gradients_are_the_same(tiny_llama: Path, what: str) -> None:
    ids = torch.arange(5, 37).view(2, 16)
    found = []
    for activations in ("keep", what):
        model = build(tiny_llama, activations=activations)
        with torch.autocast("cpu", torch.bfloat16), torch.random.fork_rng():
            torch.manual_seed(0)
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        found.append([loss, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_missing_package_is_named_with_its_extra_before_anything_is_loaded(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(float8, "find_spec", lambda name: None)
    with pytest.raises(LaunchError, match=r'train.mixed_precision: fp8 needs .* `pip install "onecurve\[fp8\]"`'):
        check_model(recipe(tiny_llama))


def test_adapters_are_refused(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError, match=r"peft.method is lora: torchao would compute the gradients of frozen"):
        check_model(recipe(tiny_llama, peft={"method": "lora"}))


@installed
@pytest.mark.parametrize("device", ["cpu", "A100"])
def test_a_device_without_float8_is_named_unless_emulation_is_allowed(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    named = "this cpu"
    if device != "cpu":
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda", 0))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
        named = r"this NVIDIA A100 \(compute capability 8.0\)"
    with pytest.raises(LaunchError, match=f"train.mixed_precision: fp8 is only emulated by {named}, many times"):
        check_model(recipe(tiny_llama, train={"emulate": False}))
    assert check_model(recipe(tiny_llama))[0] == "fp8"


@installed
def test_a_device_with_float8_computes_in_it(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert check_model(recipe(tiny_llama, train={"emulate": False})) == ("fp8", "")
    model = build(tiny_llama)
    assert not model.model.layers[0].mlp.up_proj.config.emulate
