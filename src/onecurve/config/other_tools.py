"""What settings of other tools are called here: HF Trainer, TRL, LLaMA-Factory, axolotl and ms-swift."""

from collections.abc import Iterable, Mapping
from typing import Any

_BATCH = "per_device_train_batch_size per_gpu_train_batch_size train_batch_size per_device_batch_size batch_size"
_ACCUMULATED = "gradient_accumulation_steps grad_accum accumulate_grad_batches accumulation_steps"

_KEYS = {
    "data.columns": "dataset_text_field text_column text_column_name label_column label_column_name field_messages",
    "data.eval": "validation validation_file eval_dataset eval_file val_dataset val_file val_data validation_data dev",
    "data.format": "dataset_type",
    "data.max_length": "cutoff_len sequence_len max_seq_length max_seq_len seq_length model_max_length block_size",
    "data.test": "test_file test_dataset test_data",
    "data.train": "dataset datasets dataset_name dataset_path dataset_dir train_file train_dataset train_data",
    "eval.best_metric": "metric_for_best_model load_best_model_at_end",
    "eval.every": "eval_steps evaluation_steps eval_strategy evaluation_strategy evals_per_epoch val_check_interval",
    "eval.micro_batch_size": "per_device_eval_batch_size eval_batch_size per_gpu_eval_batch_size",
    "eval.patience": "early_stopping_patience",
    "checkpoint.every": "save_steps save_strategy saves_per_epoch save_every",
    "checkpoint.keep": "save_total_limit",
    "model.attn_implementation": "flash_attention flash_attn use_flash_attention_2 attn_impl",
    "model.chat_template": "template chat_template_path",
    "model.dtype": "torch_dtype",
    "model.path": "model_name_or_path base_model model_name pretrained_model_name_or_path model_id model_id_or_path",
    "model.revision": "model_revision revision_of_model",
    "model.tokenizer": "tokenizer_name tokenizer_name_or_path tokenizer_config",
    "optim.beta1": "adam_beta1",
    "optim.beta2": "adam_beta2",
    "optim.eps": "adam_epsilon adam_eps",
    "optim.lr": "learning_rate",
    "optim.max_grad_norm": "gradient_clipping gradient_clip_val clip_grad_norm",
    "optim.name": "optimizer optim_type",
    "optim.schedule": "lr_scheduler_type lr_scheduler scheduler",
    "output_dir": "output_path save_dir",
    "peft.lora_alpha": "lora_alpha",
    "peft.lora_dropout": "lora_dropout",
    "peft.method": "adapter finetuning_type train_type tuner_type use_lora use_peft",
    "peft.modules_to_save": "modules_to_save lora_modules_to_save additional_target",
    "peft.r": "lora_r lora_rank lora_dim",
    "peft.target_modules": "target_modules lora_target lora_target_modules",
    "peft.use_dora": "use_dora",
    "peft.use_rslora": "use_rslora",
    "regularization.class_weights": "class_weight loss_weights",
    "regularization.cutmix_alpha": "cutmix",
    "regularization.dropout": "hidden_dropout_prob attention_dropout dropout_rate",
    "regularization.label_smoothing": "label_smoothing_factor smoothing",
    "regularization.mixup_alpha": "mixup",
    "regularization.neftune_alpha": "neftune_noise_alpha neftune",
    "seed": "data_seed random_seed",
    "task.labels": "num_labels label_names",
    "task.name": "stage task_type task_name",
    "task.problem_type": "problem_type",
    "tracking.log_every": "logging_steps log_steps",
    "tracking.project": "wandb_project project_name",
    "tracking.trackers": "report_to log_with use_wandb",
    "train.compile": "torch_compile",
    "train.epochs": "num_train_epochs num_epochs max_epochs",
    "train.packing": "sample_packing",
    "train.resume": "resume_from_checkpoint auto_resume_from_checkpoints",
}
"""Key here -> its names elsewhere. The value may be written in another way."""

_SETTINGS = {
    "bf16": "train.mixed_precision: bf16",
    "fp16": "train.mixed_precision: fp16",
    "fp8": "train.mixed_precision: fp8",
    "load_in_4bit": "model.quantization: nf4 (with peft.method: lora)",
    "quantization_bit": "model.quantization: nf4, or int8 (with peft.method: lora)",
    "load_in_8bit": "model.quantization: int8 (with peft.method: lora)",
    "gradient_checkpointing": "train.activations: recompute",
    "disable_gradient_checkpointing": "train.activations: keep",
    "overwrite_output_dir": "train.resume: never",
    "auto_find_batch_size": "train.micro_batch_size: auto",
    "use_liger_kernel": "train.logits: chunked",
    "min_lr": "optim.min_lr_ratio, the lowest learning rate divided by optim.lr",
    **dict.fromkeys(("warmup_ratio", "warmup_proportion"), "optim.warmup_steps"),
    **dict.fromkeys(_BATCH.split(), "train.micro_batch_size"),
    **dict.fromkeys(_ACCUMULATED.split(), "train.global_batch_size"),
}
"""Name elsewhere -> what to write here."""

_ADVICE = {
    **dict.fromkeys(
        ("deepspeed", "deepspeed_config", "fsdp", "fsdp_config", "ddp_backend", "ddp_timeout", "local_rank"),
        "The launch file chooses the strategy: accelerate_configs/ddp.yaml, zero2.yaml, ...",
    ),
    **dict.fromkeys(
        ("use_cpu", "no_cuda", "device", "device_map", "n_gpu", "num_gpus"),
        "A GPU is used where torch finds one; CUDA_VISIBLE_DEVICES selects or hides them.",
    ),
    **dict.fromkeys(
        ("do_train", "do_eval", "do_predict"), "Splits that are set are used: data.train, data.eval and data.test."
    ),
    **dict.fromkeys(
        ("train_on_inputs", "train_on_input", "completion_only_loss", "assistant_only_loss"),
        "Task sft learns the answers only; task causal_lm learns whole texts.",
    ),
    **dict.fromkeys(
        "loraplus_lr_ratio push_to_hub streaming".split(),
        "There is no such feature yet.",
    ),
    **dict.fromkeys(
        ("dataloader_num_workers", "preprocessing_num_workers", "dataset_num_proc", "dataset_processes"),
        "Examples are encoded on all cores and prepared ahead without a setting.",
    ),
    **dict.fromkeys(
        ("greater_is_better", "remove_unused_columns", "ddp_find_unused_parameters", "save_safetensors"),
        "Remove it: this is decided without a setting.",
    ),
    "run_name": "Trackers are given the last part of output_dir as the run's name.",
    "dpo_beta": "Preference training such as DPO is not supported.",
}
"""Name elsewhere -> a sentence."""

_NAMES = {other: key for key, others in _KEYS.items() for other in others.split()} | _SETTINGS


_DOTTED = {
    "data.name": "data.train",
    "data.path": "data.train",
    "data.type": "data.format",
    "micro_batch_size": "train.micro_batch_size",
    "model.name": "model.path",
}
"""Name elsewhere, with its section -> key here."""


def called_here(key: str, unknown: Mapping[str, Any]) -> str:
    """Return a sentence on what a setting of another tool is called here; empty for one that none of them has.

    Args:
        key: As the user wrote it; its last part counts.
        unknown: All unknown settings of the recipe by their last part, with their values.
    """
    name = key.rpartition(".")[-1].lower().replace("-", "_")
    if key in _DOTTED:
        return f"Here that is '{_DOTTED[key]}'."
    if name in _ADVICE:
        return _ADVICE[name]
    if name not in _NAMES:
        return ""
    if name in _BATCH.split() or name in _ACCUMULATED.split():
        return _batches(name, unknown)
    if name.startswith("warmup_"):
        return f"Here that is 'optim.warmup_steps', a number of steps: {unknown.get(name)} x the steps of the run."
    off = name in ("bf16", "fp16", "fp8") and unknown.get(name) is False
    return "Here that is 'train.mixed_precision: no', the default." if off else f"Here that is '{_NAMES[name]}'."


def _batches(name: str, unknown: Mapping[str, Any]) -> str:
    size, accumulated = _first(_BATCH.split(), unknown), _first(_ACCUMULATED.split(), unknown)
    total = f"{size or 'train.micro_batch_size'} x {accumulated or 'accumulation steps'} x number of ranks"
    of_one = f" ({size * accumulated} on one)" if size and accumulated else ""
    here = "it is derived" if name in _ACCUMULATED.split() else "that is 'train.micro_batch_size'"
    return f"Here {here}, and 'train.global_batch_size', the examples of an update over all ranks, is {total}{of_one}."


def _first(names: Iterable[str], values: Mapping[str, Any]) -> int | None:
    found = [values[name] for name in names if isinstance(values.get(name), int)]
    return found[0] if found else None
