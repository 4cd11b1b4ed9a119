from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig

from onecurve.config import Recipe, TaskSection
from onecurve.model.loading import load_model
from onecurve.optim import build_optimizer
from onecurve.tasks import load_task
from onecurve.tasks.base import Survey


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
