"""Cures that make no sense are refused before any weights load; dropout is set everywhere."""

from pathlib import Path

import pytest
import torch
from torch import nn

from onecurve.config import curve_settings
from onecurve.errors import ConfigError
from onecurve.planning.changed_run import allowed_changes
from onecurve.preflight import read
from onecurve.regularization import dropout, preparation
from onecurve.regularization.dropout import largest
from onecurve.regularization.preparation import check_model, prepare

RECIPE = """
output_dir: runs/x
task: {name: TASK}
model: {path: org/model}
data: {train: a.jsonl}
train: {max_steps: 30}
"""
NUMBERS = ["--task.problem_type", "regression"]
SEVERAL = ["--task.problem_type", "multi_label_classification"]
TAUGHT = ["--task.student_task", "text_classification", "--task.teacher", "t"]


@pytest.fixture
def recipe(tmp_path):
    def of(task, *overrides):
        path = tmp_path / "recipe.yaml"
        path.write_text(RECIPE.replace("TASK", task))
        return read([str(path), *overrides])

    return of


@pytest.mark.parametrize(
    ("task", "overrides", "said"),
    [
        ("text_classification", ["label_smoothing", "0.1", *NUMBERS], "label_smoothing: is for tasks .*no classes"),
        ("text_classification", ["label_smoothing", "0.1", *SEVERAL], "label_smoothing: .*predicts any number of lab"),
        (
            "text_classification",
            ["class_weights", "balanced", *SEVERAL],
            "class_weights: is for tasks that",
        ),
        ("causal_lm", ["focal_gamma", "2"], "focal_gamma: is for .*causal_lm predicts tokens of a vocabulary"),
        ("speech_recognition", ["r_drop", "1"], "r_drop: is for tasks that predict"),
        ("causal_lm", ["r_drop", "1", "--train.logits", "chunked"], "r_drop: .*Set train.logits to whole"),
        ("text_classification", ["mixup_alpha", "0.2"], "mixup_alpha: mixes images, and text_classification does"),
        ("audio_classification", ["cutmix_alpha", "1"], "cutmix_alpha: mixes images"),
        ("image_classification", ["fgm", "1"], "fgm: changes token embeddings, and image_classification reads no text"),
        ("sft", ["neftune_alpha", "5", "--train.packing", "on"], "neftune_alpha: .*Set train.packing to off"),
        ("dpo", ["label_smoothing", "0.1"], "label_smoothing: is another criterion, and the loss of dpo is its own"),
        ("kto", ["neftune_alpha", "5"], "neftune_alpha: changes embeddings pass by pass"),
        ("distillation", ["word_deletion", "0.1", *TAUGHT], "word_deletion: .*the teacher reads each text once"),
        ("distillation", ["word_swap", "0.1", *TAUGHT], "word_swap: .*the teacher reads each text once"),
        ("sft", ["label_smoothing", "1.5"], "label_smoothing: must be less than 1"),
        ("sft", ["fgm", "-1"], "fgm: must be greater than 0"),
        ("text_classification", ["class_weights", "even"], "class_weights"),
        ("text_classification", ["class_weights", "{a: -1}"], "class_weights: .*weights of at least 0"),
        ("sft", ["neftune_noise_alpha", "5"], "regularization.neftune_alpha"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_heavy_is_imported(recipe, task, overrides, said):
    key, value, *others = overrides
    with pytest.raises(ConfigError, match=said):
        recipe(task, f"--regularization.{key}", value, *others)


@pytest.mark.parametrize(
    ("task", "keys"),
    [
        ("token_classification", {"label_smoothing": "0.1", "focal_gamma": "2", "class_weights": "{O: 0.5}"}),
        ("text_classification", {"class_weights": "balanced", "r_drop": "1", "fgm": "1", "neftune_alpha": "5"}),
        ("sft", {"label_smoothing": "0.1", "r_drop": "0.5", "dropout": "0"}),
        ("image_classification", {"mixup_alpha": "0.2", "cutmix_alpha": "1", "focal_gamma": "2"}),
        ("audio_classification", {"label_smoothing": "0.1", "dropout": "0.2"}),
    ],
)
def test_what_makes_sense_is_not(recipe, task, keys):
    checked = recipe(task, *(part for key, value in keys.items() for part in (f"--regularization.{key}", value)))
    assert keys.keys() == checked.recipe.regularization.model_dump(exclude_defaults=True).keys()


def test_zero_is_off_and_two_sweeps_are_counted(recipe):
    assert recipe("speech_recognition", "--regularization.r_drop", "0").recipe.regularization.r_drop is None
    assert recipe("sft").recipe.regularization.sweeps == 1
    assert recipe("sft", "--regularization.fgm", "1").recipe.regularization.sweeps == 2


def test_a_run_that_began_without_the_section_goes_on_and_not_under_a_cure(recipe):
    now = recipe("sft").resolved
    began = curve_settings({name: value for name, value in now.items() if name != "regularization"})
    state = {"curve": began, "recipe": now, "step": 3, "best": {}, "max_steps": 30}
    assert allowed_changes(Path("c"), state, curve_settings(now), []) == {}
    smoothed = curve_settings(recipe("sft", "--regularization.label_smoothing", "0.1").resolved)
    with pytest.raises(ConfigError, match=r"regularization\.label_smoothing was None and is 0\.1"):
        allowed_changes(Path("c"), state, smoothed, [])


def model_of(kind, **fields):
    from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = kind in ("vit", "resnet")
    sizes |= {"image_size": 16, "patch_size": 8} if kind == "vit" else {} if vision else {"vocab_size": 40}
    auto = AutoModelForImageClassification if vision else AutoModelForSequenceClassification
    return auto, AutoConfig.for_model(kind, **({} if kind in ("t5", "gpt2", "resnet") else sizes), **fields)


SMALL = {
    "bert": {},
    "distilbert": {"dim": 16, "hidden_dim": 16, "n_heads": 2, "n_layers": 1},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 40},
    "llama": {"num_key_value_heads": 1},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 40},
    "vit": {},
}


MORE = sorted(SMALL.keys() - {"bert", "llama"})


def probabilities(model):
    found = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    return found + [value for m in model.modules() for name, value in vars(m).items() if name.endswith("dropout")]


@pytest.mark.parametrize("kind", ["bert", "llama", *(pytest.param(k, marks=pytest.mark.slow) for k in MORE)])
def test_dropout_is_set_in_every_module_and_in_the_saved_config(recipe, kind, tmp_path):
    auto, config = model_of(kind, **SMALL[kind])
    told = recipe("text_classification", "--regularization.dropout", "0.35").recipe
    check_model(told, auto, config)
    model = auto.from_config(config)
    prepare(model, told)
    numbers = [p for p in probabilities(model) if isinstance(p, float | int)]
    assert numbers and set(numbers) == {0.35}
    assert model.dropout_remark.endswith(" places")
    model.save_pretrained(tmp_path)
    assert largest(auto.from_pretrained(tmp_path)) == 0.35
    prepare(model, recipe("text_classification", "--regularization.dropout", "0").recipe)
    assert largest(model) == 0


def test_dropout_that_modules_keep_as_a_number_and_forget_is_caught(recipe, tmp_path, monkeypatch):
    def of_modules_alone(model):
        return ((module, "p", module.p) for module in model.modules() if isinstance(module, nn.Dropout))

    monkeypatch.setattr(dropout, "_probabilities", of_modules_alone)
    with pytest.raises(ConfigError, match="has no dropout"):
        test_dropout_is_set_in_every_module_and_in_the_saved_config(recipe, "llama", tmp_path)


def test_dropout_that_the_saved_config_forgets_is_caught(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "set_in_config", lambda config, value: None)
    with pytest.raises(AssertionError):
        test_dropout_is_set_in_every_module_and_in_the_saved_config(recipe, "bert", tmp_path)


def test_a_model_without_dropout_or_embeddings_is_refused_on_its_skeleton(recipe):
    from transformers import AutoModelForSequenceClassification, CanineConfig

    def refused(task, auto, config, *overrides):
        with pytest.raises(ConfigError) as error:
            check_model(recipe(task, *overrides).recipe, auto, config)
        return str(error.value)

    small = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    resnet = model_of("resnet", **small)
    said = refused("image_classification", *resnet, "--regularization.dropout", "0.1")
    assert said.startswith("regularization.dropout: ResNetForImageClassification has no dropout.")
    said = refused("image_classification", *resnet, "--regularization.r_drop", "1")
    assert "has no dropout above 0. Remove it." in said
    llama = model_of("llama", **SMALL["llama"])
    said = refused("text_classification", *llama, "--regularization.r_drop", "1")
    assert "Set regularization.dropout, such as 0.1." in said
    lora = ["--peft.method", "lora", "--peft.lora_dropout", "0.1"]
    check_model(recipe("text_classification", "--regularization.r_drop", "1", *lora).recipe, *llama)
    both = ["--regularization.r_drop", "1", "--regularization.dropout", "0.1"]
    check_model(recipe("text_classification", *both).recipe, *llama)
    canine = CanineConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    said = refused("text_classification", AutoModelForSequenceClassification, canine, "--regularization.fgm", "1")
    assert said.startswith("regularization.fgm: CanineForSequenceClassification looks up no token embeddings")
    assert torch.get_default_device().type == "cpu"
