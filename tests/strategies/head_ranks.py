"""A rank that loads a model as a run does, and writes what each of its parameters starts from."""

import json
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import AutoConfig

from onecurve.config import Recipe
from onecurve.machine.distributed import start
from onecurve.model.loading import load_model
from onecurve.tasks import load_task
from onecurve.tasks.base import Survey


def load(folder: str, device: Any = None, **sections: Any) -> Any:
    recipe = Recipe.model_validate(
        {
            "output_dir": "unused",
            "task": {"name": "text_classification"},
            "model": {"path": folder, **sections.pop("model", {})},
            "data": {"train": "unused"},
            "train": {"max_steps": 1, "global_batch_size": 2, "micro_batch_size": 2},
            **sections,
        }
    )
    survey = Survey(["a", "b", "c"] if recipe.task.name == "text_classification" else [])
    return load_model(recipe, load_task(recipe.task), AutoConfig.from_pretrained(folder), survey, "no", device)


def values(model: Any) -> dict[str, Any]:
    """Return whole trained parameters by name, on the CPU; where ZeRO-3 shares them out every rank has to ask."""
    found = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_id"):
            from deepspeed.runtime.zero import GatheredParameters

            with GatheredParameters([parameter]):
                found[name] = parameter.detach().cpu().clone()
        else:
            found[name] = parameter.detach().cpu().clone()
    return found


def main(argv: list[str], run: Any = None) -> None:
    """Take the checkpoint's folder, the one to write to, and sections of the recipe as JSON."""
    accelerator = start([], "unused")
    model = load(argv[0], accelerator.device, **json.loads(argv[2] if len(argv) > 2 else "{}"))
    save_file(values(model), Path(argv[1]) / f"rank-{accelerator.process_index}.safetensors")


if __name__ == "__main__":
    main(sys.argv[1:])
