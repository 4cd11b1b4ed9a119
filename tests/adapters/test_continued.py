"""An adapter's folder as model.path: its base is loaded, and its own values are trained further."""

import json
import shutil
from functools import cache

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from onecurve.adapters import continued_by
from onecurve.adapters.buffers import adapter_buffers
from onecurve.config import Recipe, RegularizationSection, TaskSection
from onecurve.errors import ConfigError
from onecurve.export.model_folder import save_alone
from onecurve.model.freezing import freeze
from onecurve.model.identity import weights_identity
from onecurve.model.loading import load_model
from onecurve.model.reading import Reading
from onecurve.tasks import load_task
from onecurve.tasks.base import Survey
from tests.adapters.test_exported import FIELDS, VARIANTS, logits, trained

LABELS = ["high", "low", "middle"]
FAST = ("lora", "vera", "prefix_tuning")
CASES = {name: {"method": name, **FIELDS.get(name, {})} for name in (*FAST, "ia3", "vblora", "bottleneck")}
CASES |= {name: VARIANTS[name] for name in ("dora", "pissa")}


def recipe_for(path, peft):
    return Recipe.model_validate(
        {
            "output_dir": "unused",
            "task": {"name": "text_classification"},
            "model": {"path": str(path)},
            "data": {"train": "unused"},
            "peft": peft,
            "train": {"max_steps": 1, "global_batch_size": 2, "micro_batch_size": 2},
        }
    )


def load(path, peft, labels=LABELS):
    recipe, task = recipe_for(path, peft), load_task(TaskSection(name="text_classification"))
    reading = Reading(recipe.model, None, task.auto_processor)
    continued_by(recipe)
    return load_model(recipe, task, reading.config, Survey(labels=list(labels)), "no").eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_bert):
    """Returns by its name an adapter's folder as the exporter writes it, and the model that it was saved from."""
    parent = tmp_path_factory.mktemp("saved")

    @cache
    def save(name):
        model = trained(tiny_bert, CASES[name])
        ids = {label: number for number, label in enumerate(LABELS)}
        model.config.update({"id2label": dict(enumerate(LABELS)), "label2id": ids})  # in a run's order
        save_alone(parent / name, model, AutoTokenizer.from_pretrained(tiny_bert), str)
        return parent / name, model

    return save


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_it_begins_with_the_very_values_that_were_saved(saved, tiny_bert, name):
    folder, before = saved(name)
    method = {key: CASES[name][key] for key in CASES[name].keys() & {"method", "num_virtual_tokens"}}
    model = load(folder, method)
    earlier = {n: p for n, p in before.named_parameters() if p.requires_grad}
    now = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert earlier.keys() == now.keys()
    assert all(torch.equal(earlier[n], now[n]) for n in now)
    buffers = zip(adapter_buffers(before), adapter_buffers(model), strict=True)
    assert all(torch.equal(a, b) for (_, a), (_, b) in buffers)
    assert torch.equal(logits(model), logits(before))
    assert model.new_weights == ""
    assert model.continued_from == str(folder)
    # so that what it will write refers to the base itself, not to the folder that it began from
    assert model.peft_config["default"].base_model_name_or_path == str(tiny_bert)


@pytest.mark.parametrize(
    ("peft", "said"),
    [
        (None, r"^model.path: '.*lora' is a PEFT adapter \(lora\), and without a peft section every weight is trained"),
        ({"method": "ia3"}, r"^peft.method: is ia3, but the adapter '.*' is lora"),
        ({"method": "lora", "r": 16, "lora_alpha": 3}, r"^peft: peft.r is 16, the adapter has 8; peft.lora_alpha is 3"),
        ({"method": "lora", "target_modules": ["query"]}, r"peft.target_modules is \['query'\], the adapter has"),
        ({"method": "lora", "use_dora": True}, "peft.use_dora is True, the adapter has False"),
    ],
)
def test_other_settings_are_refused_in_one_message_before_weights_load(saved, peft, said):
    with pytest.raises(ConfigError, match=said):
        continued_by(recipe_for(saved("lora")[0], peft))


def test_what_it_has_itself_may_be_said_again(saved):
    peft = {"method": "lora", "r": 8, "target_modules": ["value", "query"], "lora_dropout": 0.0, "bias": "none"}
    assert continued_by(recipe_for(saved("lora")[0], peft)).method == "lora"
    with pytest.raises(ConfigError, match=r"^peft.target_modules: is all-linear, here .*dense.*has query, value"):
        load(saved("lora")[0], {"method": "lora", "target_modules": "all-linear"})


def test_labels_in_another_order_or_of_another_number_are_refused(saved):
    for labels in (["low", "high", "middle"], ["high", "low"], ["a", "b", "c"]):
        with pytest.raises(ConfigError, match=r"is for the labels high, low, middle, and this run's are"):
            load(saved("lora")[0], {"method": "lora"}, labels)


def test_lora_s_a_stays_as_drawn_in_what_is_saved_and_trained_further(tiny_bert, tmp_path):
    def begun(path):
        model = load(path, {"method": "lora"})
        freeze(model, RegularizationSection(freeze=["*lora_A*"]), ())
        parameters = dict(model.named_parameters())
        assert not any(parameter.requires_grad for name, parameter in parameters.items() if "lora_A" in name)
        return model, {name: p for name, p in parameters.items() if "lora_A" in name}, parameters

    model, a, _ = begun(tiny_bert)
    _, as_drawn, _ = begun(tiny_bert)  # another site, with the same seed
    assert a and all(torch.equal(a[name], as_drawn[name]) for name in a)
    trained_now = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {"lora_B", "modules_to_save"} <= {part for name in trained_now for part in name.split(".")}
    with torch.no_grad():
        for parameter in trained_now.values():
            parameter.add_(torch.randn_like(parameter))
    save_alone(tmp_path / "adapter", model, AutoTokenizer.from_pretrained(tiny_bert), str)
    _, again, parameters = begun(tmp_path / "adapter")
    assert all(torch.equal(again[name], as_drawn[name]) for name in as_drawn)
    assert all(torch.equal(parameters[name], trained_now[name]) for name in trained_now)


def test_another_tools_folder_is_read_with_its_base(saved, tiny_bert, tmp_path):
    """Without config, tokenizer and links: only what PEFT itself writes."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    settings = json.loads((saved("lora")[0] / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(tiny_bert)}))
    shutil.copy(saved("lora")[0] / "adapter_model.safetensors", folder)
    with pytest.raises(ConfigError, match=r"labels \(unnamed\), and this run's are high, low, middle.*task.labels"):
        load(folder, {"method": "lora"})
    recipe, task = recipe_for(folder, {"method": "lora"}), load_task(TaskSection(name="text_classification"))
    reading = Reading(recipe.model, None, task.auto_processor)
    survey = Survey(labels=LABELS, order="recipe")
    model = load_model(recipe, task, reading.config, survey, "no").eval()
    assert torch.equal(logits(model), logits(saved("lora")[1]))
    assert weights_identity(recipe.model) != weights_identity(recipe_for(tiny_bert, None).model)
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "/gone/away"}))
    with pytest.raises(ConfigError, match=r"the base of the adapter '.*' is not there: /gone/away"):
        continued_by(recipe)


def test_an_adapter_that_lacks_what_would_be_trained_is_refused(saved, tmp_path):
    from safetensors.torch import save_file

    folder = shutil.copytree(saved("lora")[0], tmp_path / "cut", symlinks=True)
    values = load_file(folder / "adapter_model.safetensors")
    left_out = next(name for name in values if "lora_B" in name)
    save_file({k: v for k, v in values.items() if k != left_out}, folder / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=r"cannot be trained further here: it does not hold .*lora_B"):
        load(folder, {"method": "lora"})
