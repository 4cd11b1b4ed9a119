from pathlib import Path

import torch
from transformers import AutoConfig

from onecurve.config import Recipe, TaskSection
from onecurve.model import load_model
from onecurve.tasks import load_task
from onecurve.tasks.base import Survey


def test_recomputed_activations_reach_adapters_but_not_the_frozen_inputs(tiny_llama: Path) -> None:
    recipe = Recipe.model_validate(
        {
            "output_dir": "unused",
            "task": {"name": "causal_lm"},
            "model": {"path": str(tiny_llama)},
            "data": {"train": "unused"},
            "peft": {"method": "lora", "target_modules": ["q_proj"]},
            "train": {
                "max_steps": 1,
                "global_batch_size": 2,
                "micro_batch_size": 2,
                "activations": "recompute",
            },
        }
    )
    task = load_task(TaskSection(name="causal_lm"))
    model = load_model(recipe, task, AutoConfig.from_pretrained(tiny_llama), Survey(), "no").train()
    inputs: list[torch.Tensor] = []
    model.get_input_embeddings().register_forward_hook(lambda _, __, output: inputs.append(output))
    ids = torch.arange(5, 13).view(2, 4)
    model(input_ids=ids, labels=ids).loss.backward()
    assert [tensor.requires_grad for tensor in inputs] == [False]
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        assert (parameter.grad is not None) == parameter.requires_grad, name
