"""TRL's SFTTrainer on a work: `python trl_sft.py WORK.json FOLDER defaults|best`.

Its defaults are bf16 and gradient checkpointing; both are switched off also in the league of defaults, because a CPU
without native bf16 would be some twenty times slower and say nothing of the trainer. Best: `padding_free`.
"""

import torch
from datasets import Dataset
from reading import read_examples, read_work, step_writer, training_arguments
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

work, folder, league = read_work()
model = AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32)
lora = None
if work["method"] == "lora":
    from peft import LoraConfig

    fields = {name: value for name, value in work["lora"].items() if name != "method"}
    lora = LoraConfig(task_type="CAUSAL_LM", **fields)
trainer = SFTTrainer(
    model=model,
    args=SFTConfig(
        **training_arguments(work, folder),
        bf16=False,
        gradient_checkpointing=False,
        padding_free=league == "best",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    ),
    train_dataset=Dataset.from_list(read_examples(work)),
    processing_class=AutoTokenizer.from_pretrained(work["model"]),
    peft_config=lora,
    callbacks=[step_writer(folder)],
)
trainer.train()
