"""The Hugging Face Trainer on a work: `python hf_trainer.py WORK.json FOLDER defaults|best`.

Defaults: dynamic padding, as its examples do. Best: DataCollatorWithFlattening for language models, which packs; an
encoder has none, and keeps dynamic padding.
"""

import inspect

import torch
from reading import read_examples, read_work, step_writer, training_arguments
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

work, folder, league = read_work()
classifies = work["task"] == "text_classification"
auto = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
tokenizer = AutoTokenizer.from_pretrained(work["model"])
model = auto.from_pretrained(work["model"], dtype=torch.float32)
model.config.use_cache = False
if work["method"] == "lora":
    from peft import LoraConfig, get_peft_model

    fields = {name: value for name, value in work["lora"].items() if name != "method"}
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS" if classifies else "CAUSAL_LM", **fields))
if classifies:
    collator = DataCollatorWithPadding(tokenizer)
elif league == "best":
    collator = DataCollatorWithFlattening()
else:
    collator = DataCollatorForSeq2Seq(tokenizer)
known = inspect.signature(TrainingArguments).parameters
arguments = {name: value for name, value in training_arguments(work, folder).items() if name in known}
trainer = Trainer(
    model=model,
    args=TrainingArguments(**arguments),
    train_dataset=read_examples(work),
    data_collator=collator,
    callbacks=[step_writer(folder)],
)
trainer.train()
