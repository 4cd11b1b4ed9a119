"""An adapter as PEFT alone writes it, without config, tokenizer or task.json, can be asked; so can a run directory."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from onecurve.conversion.from_weights import convert_adapter
from onecurve.conversion.target import Wanted
from onecurve.errors import ConfigError
from onecurve.model.trained import load_trained
from tests.adapters.test_exported import logits, trained
from tests.export.test_adapter_folder import with_five_labels


@pytest.fixture(scope="module")
def foreign(tmp_path_factory, tiny_bert):
    """A run's directory whose model/ holds the adapter of a classifier of three labels, and the model itself."""
    folder = tmp_path_factory.mktemp("foreign") / "model"
    model = trained(tiny_bert, {"method": "lora"})
    model.save_pretrained(folder)
    assert not (folder / "config.json").exists()
    return folder, model


def test_the_task_follows_from_the_adapter_and_the_number_of_labels_from_its_head(foreign):
    folder, model = foreign
    for path in (folder, folder.parent):
        found = load_trained(path)
        assert type(found.task).__module__.endswith("text_classification")
        assert found.labels == ["LABEL_0", "LABEL_1", "LABEL_2"]
        assert torch.equal(logits(found.model.cpu()), logits(model))


def test_where_several_tasks_or_none_fit_the_message_says_what_to_add(foreign, tmp_path):
    folder, _ = foreign
    settings = json.loads((folder / "adapter_config.json").read_text())
    for kind, said in (("CAUSAL_LM", "causal_lm and sft fit it. Name one with --task"), (None, "no task fits it")):
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"task_type": kind}))
        with pytest.raises(ConfigError, match=said):
            load_trained(tmp_path)


@pytest.fixture(scope="module")
def on_five_labels(tmp_path_factory, tiny_bert):
    """An adapter for three labels as PEFT alone writes it, on a classifier of five; and the model itself."""
    parent = tmp_path_factory.mktemp("five")
    model = trained(with_five_labels(tiny_bert, parent / "base"), {"method": "lora"})
    model.save_pretrained(parent / "adapter")
    return parent / "adapter", model


def test_a_base_with_a_head_for_other_labels_gets_the_adapters(on_five_labels, tmp_path):
    folder, model = on_five_labels
    assert torch.equal(logits(load_trained(folder).model.cpu()), logits(model))
    convert_adapter(folder, Wanted(tmp_path / "whole", labels=["a", "b", "c"]))
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole")
    assert torch.allclose(logits(whole), logits(model), atol=1e-6)


def test_an_adapter_without_its_head_is_refused(on_five_labels, tmp_path):
    folder = shutil.copytree(on_five_labels[0], tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if "classifier" not in name}, file)
    with pytest.raises(ConfigError, match=r"PEFT cannot load it: .*classifier.weight"):
        load_trained(folder)


def test_a_weight_that_neither_the_adapter_nor_its_base_has_is_not_drawn(tiny_masked_bert, tmp_path):
    trained(tiny_masked_bert, {"method": "lora"}).save_pretrained(tmp_path)  # a masked language model has no pooler
    with pytest.raises(ConfigError, match=r"neither it nor its base .* has bert.pooler.dense.bias, bert.pooler.dense"):
        load_trained(tmp_path)
