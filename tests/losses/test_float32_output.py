"""A number that half precision cannot hold comes out of a regression's head, however the model computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from onecurve.adapters.trained_dtype import train_in_float32
from onecurve.config import Recipe
from onecurve.losses.float32_output import Float32Linear
from onecurve.model.loading import load_model
from onecurve.tasks import load_task
from onecurve.tasks.base import Survey

YEAR = 2015.0
"""bfloat16 has 2008, 2016, ... here; float16 has 2015, and 2049 no more."""


def regressor(folder: Path, precision: str, **sections: Any) -> tuple[Any, Any]:
    recipe = Recipe.model_validate(
        {
            "output_dir": "unused",
            "task": {"name": "text_classification", "problem_type": "regression"},
            "model": {"path": str(folder)},
            "data": {"train": "unused"},
            "train": {"max_steps": 1, "global_batch_size": 2, "micro_batch_size": 2, "mixed_precision": precision},
            **sections,
        }
    )
    task = load_task(recipe.task)
    return task, load_model(recipe, task, AutoConfig.from_pretrained(folder), Survey(), precision).eval()


@pytest.mark.parametrize("peft", [None, {"method": "lora"}, {"method": "ia3"}], ids=["full", "lora", "ia3"])
def test_a_regression_learns_and_says_numbers_that_bfloat16_rounds(tiny_bert: Path, peft: Any) -> None:
    task, model = regressor(tiny_bert, "bf16", peft=peft)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    (weight,) = (p for name, p in trained.items() if "classifier" in name and name.endswith("weight"))
    (bias,) = (p for name, p in trained.items() if "classifier" in name and name.endswith("bias"))
    with torch.no_grad():
        weight.zero_(), bias.fill_(YEAR)
    batch = {"input_ids": torch.tensor([[1, 5, 2]]), "attention_mask": torch.ones(1, 3, dtype=torch.int64)}
    batch["labels"] = torch.tensor([YEAR - 0.25])
    with torch.autocast("cpu", torch.bfloat16):
        outputs = task.forward(model, batch)
    assert (outputs.dtype, task.predict(outputs, batch)) == (torch.float32, [(YEAR, YEAR - 0.25)])
    loss = task.loss_sum(outputs, batch)
    loss.backward()
    assert (loss.dtype, loss.item(), bias.grad.item()) == (torch.float32, 0.0625, 0.5)


def test_every_label_s_head_stays_as_it_is(tiny_bert: Path) -> None:
    task = {"name": "text_classification", "problem_type": "multi_label_classification", "labels": ["a"]}
    _, model = regressor(tiny_bert, "bf16", task=task)
    assert not any(isinstance(module, Float32Linear) for module in model.modules())


def test_a_wider_dtype_stays() -> None:
    layer = torch.nn.Linear(4, 1).double()
    layer.__class__ = Float32Linear
    assert layer(torch.ones(2, 4, dtype=torch.float64)).dtype == torch.float64
    layer = torch.nn.Linear(4, 1).bfloat16()
    layer.__class__ = Float32Linear
    train_in_float32(layer)
    assert layer(torch.ones(2, 4, dtype=torch.bfloat16)).dtype == torch.float32
