"""TRL's SFTTrainer on a work: `python trl_sft.py WORK.json FOLDER defaults|best SAVE_AFTER`.

Defaults are its own, gradient checkpointing among them, but for bf16: a CPU without native bf16 would be some twenty
times slower and say nothing of the trainer. Best: no checkpointing, `padding_free` where lengths differ, and on a GPU
Liger's kernels.
"""

from datasets import Dataset
from reading import load_model, read_arguments, read_examples, recorder, training_arguments
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

work, folder, league, save_after = read_arguments()
best = {
    "gradient_checkpointing": False,
    "padding_free": work["task"] == "sft",
    "use_liger_kernel": work["device"] == "cuda",
}
trainer = SFTTrainer(
    model=load_model(work),
    args=SFTConfig(
        **training_arguments(work, folder) | (best if league == "best" else {}),
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    ),
    train_dataset=Dataset.from_list(read_examples(work)),
    eval_dataset=Dataset.from_list(read_examples(work, "eval")),
    processing_class=AutoTokenizer.from_pretrained(work["model"]),
    callbacks=[recorder(folder, work, save_after)],
)
trainer.train()
trainer.save_model()
