"""What the runners of peers share: the work, its examples and model, and the lines that train.py would write."""

import json
import sys
from pathlib import Path
from typing import Any


def read_arguments() -> tuple[dict[str, Any], Path, str, int]:
    """Return the work, the folder to write to, the league (defaults or best), and the step to save after."""
    work, folder, league, save_after = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    return json.loads(Path(work).read_text()), Path(folder), league, int(save_after)


def read_examples(work: dict[str, Any], split: str = "train") -> list[dict[str, Any]]:
    """Return `input_ids` and `labels` of each example, in the order of the plan.

    A text's first token is predicted from nothing. It is masked here because the transformers 5.6 that LLaMA-Factory
    asks for divides by it all the same.
    """
    rows = [json.loads(line) for line in Path(work[split]).read_text().splitlines()]
    if work["task"] != "text_classification":
        for row in rows:
            row["labels"][0] = -100
    return [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows]


def load_model(work: dict[str, Any]) -> Any:
    """Return the work's model on the CPU, with the adapter that everybody starts from where the work has one.

    Trained weights are float32 everywhere, frozen ones what the work computes in.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    classifies = work["task"] == "text_classification"
    auto = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    frozen = work["method"] == "lora" and work["precision"] == "bf16"
    model = auto.from_pretrained(work["model"], dtype=torch.bfloat16 if frozen else torch.float32)
    model.config.use_cache = False
    if work["method"] == "lora":
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, work["adapter"], is_trainable=True)
    return model


def write_event(folder: Path, event: str, **values: Any) -> None:
    """Append a line to the folder's metrics.jsonl."""
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"event": event} | values) + "\n")


def recorder(folder: Path, work: dict[str, Any], save_after: int) -> Any:
    """Return a transformers callback that writes losses and scores, saves once and scores after the last step."""
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
            for name, event in (("loss", "train"), ("eval_loss", "eval")):
                if logs and name in logs:
                    write_event(folder, event, step=state.global_step, loss=logs[name])

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            control.should_save = state.global_step == save_after
            control.should_evaluate = state.global_step == work["num_steps"]

    return Recorder()


def training_arguments(work: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return what makes a transformers run the same work: the order, the batch, the optimizer, the precision."""
    return {
        "output_dir": str(folder / "out"),
        "use_cpu": work["device"] == "cpu",
        "bf16": work["precision"] == "bf16",
        "per_device_train_batch_size": work["micro_batch_size"],
        "per_device_eval_batch_size": work["micro_batch_size"],
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
