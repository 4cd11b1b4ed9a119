"""LLaMA-Factory on a work: `python llama_factory.py WORK.json FOLDER defaults|best SAVE_AFTER`.

What `llamafactory-cli train` does in one process, with the examples given as its own tokenised folder. Defaults are its
own, gradient checkpointing among them. Best: no checkpointing; it packs only by making other batches.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

if not torch.cuda.is_available():
    # PyPI's wheels of these two need CUDA's libraries. Texts need neither, but it imports the second
    sys.modules |= {"torchvision": None, "torchaudio": ModuleType("torchaudio")}  # type: ignore[dict-item]
    sys.modules["torchaudio"].__spec__ = ModuleSpec("torchaudio", None)

from datasets import Dataset, DatasetDict
from llamafactory.train.tuner import run_exp
from reading import read_arguments, read_examples, recorder, training_arguments

work, folder, league, save_after = read_arguments()
splits = {"train": read_examples(work), "validation": read_examples(work, "eval")}
DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()}).save_to_disk(folder / "tokenized")
arguments: dict[str, Any] = training_arguments(work, folder) | {
    "stage": "sft",  # also for plain text: `pt` makes the labels anew, and its loss is then over one too many a block
    "do_train": True,
    "model_name_or_path": work["model"],
    "finetuning_type": work["method"],
    "template": "empty",
    "dataset": "ours",
    "tokenized_path": str(folder / "tokenized"),
    "disable_shuffling": True,
    "disable_gradient_checkpointing": league == "best",
    "report_to": "none",
}
del arguments["train_sampling_strategy"]
if work["method"] == "lora":
    arguments |= {"adapter_name_or_path": work["adapter"], "lora_target": "all"}
run_exp(arguments, [recorder(folder, work, save_after)])
