"""An adapter's folder as model.path: its base is loaded, and its own values are trained further."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from onecurve.adapters import continued_by
from onecurve.adapters.buffers import adapter_buffers
from onecurve.config import Recipe, TaskSection
from onecurve.errors import ConfigError
from onecurve.export.model_folder import save_alone
from onecurve.model.identity import weights_identity
from onecurve.model.loading import load_model
from onecurve.model.reading import Reading
from onecurve.tasks import load_task
from onecurve.tasks.base import Survey
from tests.adapters.test_exported import FIELDS, VARIANTS, logits, trained

LABELS = ["high", "low", "middle"]
CASES = {name: {"method": name, **FIELDS.get(name, {})} for name in ("lora", "ia3", "vera", "vblora", "prefix_tuning")}
CASES |= {
    "dora": VARIANTS["dora"],
    "pissa": VARIANTS["pissa"],
    "prefix_tuning": {"method": "prefix_tuning", **FIELDS["prefix_tuning"]},
}
CASES["bottleneck"] = {"method": "bottleneck"}


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
    """Adapters as the exporter writes them, and the models that they were saved from."""
    parent, models = tmp_path_factory.mktemp("saved"), {}
    for name, section in CASES.items():
        models[name] = trained(tiny_bert, section)
        # as `trained` names them, but in a run's order
        models[name].config.update(
            {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
        )
        save_alone(parent / name, models[name], AutoTokenizer.from_pretrained(tiny_bert), str)
    return parent, models


@pytest.mark.parametrize("name", CASES)
def test_it_begins_with_the_very_values_that_were_saved(saved, tiny_bert, name):
    parent, models = saved
    method = {key: CASES[name][key] for key in CASES[name].keys() & {"method", "num_virtual_tokens"}}
    model = load(parent / name, method)
    earlier = {n: p for n, p in models[name].named_parameters() if p.requires_grad}
    now = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert earlier.keys() == now.keys()
    assert all(torch.equal(earlier[n], now[n]) for n in now)
    assert all(
        torch.equal(a, b) for (_, a), (_, b) in zip(adapter_buffers(models[name]), adapter_buffers(model), strict=True)
    )
    assert torch.equal(logits(model), logits(models[name]))
    assert model.new_weights == ""
    assert model.continued_from == str(parent / name)
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
        continued_by(recipe_for(saved[0] / "lora", peft))


def test_what_it_has_itself_may_be_said_again(saved):
    peft = {"method": "lora", "r": 8, "target_modules": ["value", "query"], "lora_dropout": 0.0, "bias": "none"}
    assert continued_by(recipe_for(saved[0] / "lora", peft)).method == "lora"
    with pytest.raises(ConfigError, match=r"^peft.target_modules: is all-linear, here .*dense.*has query, value"):
        load(saved[0] / "lora", {"method": "lora", "target_modules": "all-linear"})


def test_labels_in_another_order_or_of_another_number_are_refused(saved):
    for labels in (["low", "high", "middle"], ["high", "low"], ["a", "b", "c"]):
        with pytest.raises(ConfigError, match=r"is for the labels high, low, middle, and this run's are"):
            load(saved[0] / "lora", {"method": "lora"}, labels)


def test_another_tools_folder_is_read_with_its_base(saved, tiny_bert, tmp_path):
    """Without config, tokenizer and links: only what PEFT itself writes."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    settings = json.loads((saved[0] / "lora" / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(tiny_bert)}))
    shutil.copy(saved[0] / "lora" / "adapter_model.safetensors", folder)
    with pytest.raises(ConfigError, match=r"labels \(unnamed\), and this run's are high, low, middle.*task.labels"):
        load(folder, {"method": "lora"})
    recipe, task = recipe_for(folder, {"method": "lora"}), load_task(TaskSection(name="text_classification"))
    reading = Reading(recipe.model, None, task.auto_processor)
    survey = Survey(labels=LABELS, order="recipe")
    model = load_model(recipe, task, reading.config, survey, "no").eval()
    assert torch.equal(logits(model), logits(saved[1]["lora"]))
    assert weights_identity(recipe.model) != weights_identity(recipe_for(tiny_bert, None).model)
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "/gone/away"}))
    with pytest.raises(ConfigError, match=r"the base of the adapter '.*' is not there: /gone/away"):
        continued_by(recipe)


def test_an_adapter_that_lacks_what_would_be_trained_is_refused(saved, tmp_path):
    from safetensors.torch import save_file

    folder = shutil.copytree(saved[0] / "lora", tmp_path / "cut", symlinks=True)
    values = load_file(folder / "adapter_model.safetensors")
    left_out = next(name for name in values if "lora_B" in name)
    save_file({k: v for k, v in values.items() if k != left_out}, folder / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=r"cannot be trained further here: it does not hold .*lora_B"):
        load(folder, {"method": "lora"})
