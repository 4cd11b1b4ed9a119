from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.modeling_utils
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig

from onecurve.config import Recipe, TaskSection
from onecurve.errors import TrainingError
from onecurve.model.loading import load_model
from onecurve.optim import build_optimizer
from onecurve.tasks import load_task
from onecurve.tasks.base import Survey
from tests.strategies.head_ranks import load


def build(folder: Path, precision: str, train: dict[str, Any], peft: dict[str, Any]) -> tuple[Recipe, Any]:
    recipe = Recipe.model_validate(
        {
            "output_dir": "unused",
            "task": {"name": "causal_lm"},
            "model": {"path": str(folder)},
            "data": {"train": "unused"},
            "peft": {"method": "lora", **peft},
            "train": {"max_steps": 1, "global_batch_size": 2, "micro_batch_size": 2, **train},
        }
    )
    task = load_task(TaskSection(name="causal_lm"))
    return recipe, load_model(recipe, task, AutoConfig.from_pretrained(folder), Survey(), precision).train()


@pytest.mark.parametrize("what", ["keep", "recompute", "selective", "offload"])
def test_adapters_get_gradients_and_the_frozen_inputs_none(tiny_llama: Path, what: str) -> None:
    _, model = build(tiny_llama, "no", {"activations": what}, {"target_modules": ["q_proj"]})
    inputs: list[torch.Tensor] = []
    model.get_input_embeddings().register_forward_hook(lambda _, __, output: inputs.append(output))
    ids = torch.arange(5, 13).view(2, 4)
    model(input_ids=ids, labels=ids).loss.backward()
    assert [tensor.requires_grad for tensor in inputs] == [False]
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        assert (parameter.grad is not None) == parameter.requires_grad, name


class Casts(TorchDispatchMode):
    """The storages that are read to be copied to another dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: set[int] = set()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        if operator._schema.name == "aten::_to_copy" and result.dtype != args[0].dtype:
            self.sources.add(args[0].untyped_storage().data_ptr())
        return result


def test_frozen_weights_cost_no_gradient_no_moment_no_cast_and_no_pass_below_the_first_adapter(
    tiny_llama: Path,
) -> None:
    targets = {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]}
    recipe, model = build(tiny_llama, "bf16", {"mixed_precision": "bf16", "emulate": True}, targets)
    frozen = {p.untyped_storage().data_ptr() for p in model.parameters() if not p.requires_grad}
    trained = [p for p in model.parameters() if p.requires_grad]
    needed: list[bool] = []
    for layer in model.get_base_model().model.layers:
        layer.register_forward_pre_hook(lambda _, args: needed.append(args[0].requires_grad))
        layer.register_forward_hook(lambda _, __, output: needed.append(output.requires_grad))
    ids = torch.arange(5, 13).view(2, 4)
    with Casts() as casts:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
    assert needed == [False, False, False, True]
    assert not casts.sources & frozen
    assert casts.sources & {p.untyped_storage().data_ptr() for p in trained}, "nothing was cast at all"
    optimizer = build_optimizer(model, recipe.optim)
    optimizer.step()
    assert set(optimizer.state) == set(trained)
    for parameter in model.parameters():
        assert (parameter.grad is not None) == parameter.requires_grad
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16)


def classifier(folder: Path, device: Any, **sections: Any) -> Any:
    return load(str(folder), device, **sections).state_dict()


@pytest.mark.parametrize("sections", [{}, {"peft": {"method": "lora"}}], ids=["full", "lora"])
def test_weights_are_read_straight_onto_a_device_and_a_new_head_is_drawn_as_ever(
    tiny_llama: Path, late_device: Any, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
) -> None:
    warmed: list[Any] = []
    monkeypatch.setattr(transformers.modeling_utils, "caching_allocator_warmup", lambda *told: warmed.append(told[1]))
    on_cpu = classifier(tiny_llama, None, **sections)
    assert set(warmed.pop().values()) == {torch.device("meta")} and not warmed  # on which headers are read
    on_device = classifier(tiny_llama, late_device.device, **sections)
    assert [set(told.values()) for told in warmed] == [{torch.device("meta")}, {late_device.device}]
    assert on_cpu.keys() == on_device.keys()
    assert all(torch.equal(value, on_device[name]) for name, value in on_cpu.items())


def test_a_device_that_is_too_small_for_the_weights_is_one_message(
    tiny_llama: Path, late_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    late_device.capacity = 8 * 2**30

    def allocate(model: Any, onto: dict[str, Any], quantizer: Any) -> None:
        if set(onto.values()) != {torch.device("meta")}:
            late_device.empty(torch.empty(4 * 2**30, device="meta"))

    monkeypatch.setattr(transformers.modeling_utils, "caching_allocator_warmup", allocate)
    with pytest.raises(TrainingError, match=r"out of memory on cpu: its 8.0 GiB do not hold the weights of .*zero3"):
        classifier(tiny_llama, late_device.device)
