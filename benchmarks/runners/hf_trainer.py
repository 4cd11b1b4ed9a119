"""The Hugging Face Trainer on a work: `python hf_trainer.py WORK.json FOLDER defaults|best SAVE_AFTER`.

Defaults: dynamic padding, as in its examples. Best: DataCollatorWithFlattening for language models, which packs, where
lengths differ. For an encoder, which it has nothing for that packs, each batch is sorted by length and cut into four
micro-batches: what `group_by_length` saves, with the batches left as they are. On a GPU best also has Liger's kernels.
"""

from typing import Any

import numpy as np
from reading import load_model, read_arguments, read_examples, recorder, training_arguments
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

work, folder, league, save_after = read_arguments()
classifies, best = work["task"] == "text_classification", league == "best"
examples = read_examples(work)
if classifies and best:
    work["micro_batch_size"] //= 4
    size = work["global_batch_size"]
    batches = [examples[start : start + size] for start in range(0, len(examples), size)]
    examples = [row for batch in batches for row in sorted(batch, key=lambda row: len(row["input_ids"]))]


def accuracy(predictions: Any) -> dict[str, float]:
    """Score as the examples for text classification do."""
    return {"accuracy": float((np.argmax(predictions.predictions, 1) == predictions.label_ids).mean())}


tokenizer = AutoTokenizer.from_pretrained(work["model"])
if classifies:
    collator: Any = DataCollatorWithPadding(tokenizer)
else:
    flat = best and work["task"] == "sft"
    collator = DataCollatorWithFlattening() if flat else DataCollatorForSeq2Seq(tokenizer)
arguments = training_arguments(work, folder) | {"use_liger_kernel": best and work["device"] == "cuda"}
trainer = Trainer(
    model=load_model(work),
    args=TrainingArguments(**arguments),
    train_dataset=examples,
    eval_dataset=read_examples(work, "eval"),
    data_collator=collator,
    compute_metrics=accuracy if classifies else None,
    callbacks=[recorder(folder, work, save_after)],
)
if classifies:
    # An encoder's forward has room for any argument, and so the Trainer takes it to divide by the number of items
    # itself. It does not, and the losses of four passes would be added up undivided
    trainer.model_accepts_loss_kwargs = False
trainer.train()
trainer.save_model()
