"""Settings of other tools are answered with this project's key, and other unknown ones with the nearest few."""

import pytest

from onecurve.config import Recipe, load_recipe
from onecurve.config.explain import known_keys
from onecurve.config.other_tools import _ADVICE, _DOTTED, _KEYS, _NAMES
from onecurve.config.suggest import meant
from onecurve.errors import ConfigError
from onecurve.optim.optimizers import adamw

KNOWN = set(known_keys(Recipe))
FILE = """
output_dir: runs/x
task: {name: text_classification}
model: {path: some/model}
data: {train: a.jsonl}
train: {max_steps: 3}
"""
HERE = {
    "learning_rate": "optim.lr",
    "optim.learning_rate": "optim.lr",
    "per_device_train_batch_size": "train.micro_batch_size",
    "train.batch_size": "train.micro_batch_size",
    "micro_batch_size": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.global_batch_size",
    "bf16": "train.mixed_precision: bf16",
    "fp16": "train.mixed_precision: fp16",
    "save_steps": "checkpoint.every",
    "checkpoint.save_steps": "checkpoint.every",
    "logging_steps": "tracking.log_every",
    "train.logging_steps": "tracking.log_every",
    "eval_steps": "eval.every",
    "report_to": "tracking.trackers",
    "lora_r": "peft.r",
    "lora_rank": "peft.r",
    "lora_alpha": "peft.lora_alpha",
    "load_in_4bit": "model.quantization: nf4",
    "num_train_epochs": "train.epochs",
    "model_name_or_path": "model.path",
    "model.name": "model.path",
    "base_model": "model.path",
    "dataset": "data.train",
    "data.validation": "data.eval",
    "data.type": "data.format",
    "cutoff_len": "data.max_length",
    "sequence_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "warmup_ratio": "optim.warmup_steps",
    "lr_scheduler_type": "optim.schedule",
    "adam_beta2": "optim.beta2",
    "gradient_checkpointing": "train.activations: recompute",
    "train.gradient_checkpointing": "train.activations: recompute",
    "resume_from_checkpoint": "train.resume",
    "metric_for_best_model": "eval.best_metric",
    "save_total_limit": "checkpoint.keep",
    "flash_attn": "model.attn_implementation",
}


@pytest.mark.parametrize("name", HERE)
def test_a_name_from_elsewhere_is_answered_with_the_key_here(name):
    assert f"'{HERE[name]}" in meant(name, KNOWN)


@pytest.mark.parametrize(
    ("name", "key"),
    {
        "warmup_steps": "optim.warmup_steps",
        "train.lr": "optim.lr",
        "trust_remote_code": "model.trust_remote_code",
        "max_steps": "train.max_steps",
        "optim.wieght_decay": "optim.weight_decay",
        "trian": "train",
        "data.max_lenght": "data.max_length",
        "checkpoint.keeps": "checkpoint.keep",
    }.items(),
)
def test_a_key_in_another_place_or_misspelt_is_found(name, key):
    assert meant(name, KNOWN) == f"Did you mean '{key}'?"


@pytest.mark.parametrize("name", ["zzz", "data.zzz", "zzz.zzz", "train.frobnicate", "something_else_entirely"])
def test_what_nothing_is_near_to_is_answered_shortly(name):
    said = meant(name, KNOWN)
    assert "Did you mean" not in said
    assert len(said) < 300


def test_every_key_that_is_named_is_one():
    own = {*KNOWN, *(f"optim.{name}" for name in adamw.__kwdefaults__), "task.labels", "task.problem_type"}
    own |= {f"peft.{name}" for name in "r lora_alpha lora_dropout modules_to_save target_modules use_dora".split()}
    own |= {"peft.use_rslora"}
    keys = {text.partition(":")[0].partition(",")[0] for text in [*_NAMES.values(), *_KEYS, *_DOTTED.values()]}
    assert keys <= own


def test_no_key_here_is_taken_for_another_tool_s():
    names = {key.rpartition(".")[-1] for key in KNOWN}
    assert names & _ADVICE.keys() == set()
    for name in names & _NAMES.keys():
        assert _NAMES[name].rpartition(".")[-1] == name, name


def answer(tmp_path, *overrides):
    path = tmp_path / "recipe.yaml"
    path.write_text(FILE)
    with pytest.raises(ConfigError) as error:
        load_recipe([str(path), *overrides])
    return str(error.value)


def test_batch_sizes_come_with_the_arithmetic(tmp_path):
    both = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "8"]
    first, second = answer(tmp_path, *both).splitlines()
    assert first.startswith("Unknown setting 'per_device_train_batch_size'. Here that is 'train.micro_batch_size'")
    assert first.endswith("is 4 x 8 x number of ranks (32 on one).")
    assert second.startswith("Unknown setting 'gradient_accumulation_steps'. Here it is derived")
    assert second.endswith("is 4 x 8 x number of ranks (32 on one).")
    assert "is 4 x accumulation steps x number" in answer(tmp_path, *both[:2])
    assert "0.03 x the steps of the run" in answer(tmp_path, "--warmup_ratio", "0.03")
    assert "'train.mixed_precision: no', the default" in answer(tmp_path, "--bf16", "false")
