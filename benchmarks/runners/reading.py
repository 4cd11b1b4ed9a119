"""What the runners of peers share: the work, its examples, and one line a step as train.py writes them."""

import json
import sys
from pathlib import Path
from typing import Any


def read_work() -> tuple[dict[str, Any], Path, str]:
    """Return the work, the folder to write to, and the league (defaults or best): the three arguments."""
    return json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), sys.argv[3]


def read_examples(work: dict[str, Any]) -> list[dict[str, Any]]:
    """Return `input_ids` and `labels` of each example, in the order of the plan."""
    rows = map(json.loads, Path(work["examples"]).read_text().splitlines())
    return [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows]


def step_writer(folder: Path) -> Any:
    """Return a transformers callback that writes a step's loss once it is known."""
    from transformers import TrainerCallback

    folder.mkdir(parents=True, exist_ok=True)

    class StepWriter(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
            if logs and "loss" in logs:
                with open(folder / "metrics.jsonl", "a") as file:
                    file.write(json.dumps({"event": "train", "step": state.global_step, "loss": logs["loss"]}) + "\n")

    return StepWriter()


def training_arguments(work: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return what makes a transformers run the same work: the order, the batch, the optimizer, float32."""
    return {
        "output_dir": str(folder / "out"),
        "use_cpu": True,
        "per_device_train_batch_size": work["micro_batch_size"],
        "gradient_accumulation_steps": work["global_batch_size"] // work["micro_batch_size"],
        "max_steps": work["num_steps"],
        "learning_rate": work["lr"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
    }
