"""An adapter as PEFT alone writes it, without config, tokenizer or task.json, can be asked; so can a run directory."""

import json

import pytest
import torch

from onecurve.errors import ConfigError
from onecurve.prediction.trained import load_trained
from tests.adapters.test_exported import logits, trained


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
