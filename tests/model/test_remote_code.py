"""A model that needs code of its own: refused without a prompt, or run and identified where the recipe trusts it."""

import json

import pytest

from onecurve.config import ModelSection
from onecurve.errors import ConfigError
from onecurve.model.reading import Reading, load_config
from onecurve.model.remote_code import code_identity
from tests.tiny_models import build_tiny_bert

CONFIG = """
from pathlib import Path
from transformers import BertConfig

Path({ran!r}).touch()

class OwnConfig(BertConfig):
    model_type = "own_bert"
"""
MODEL = """
from transformers import BertForSequenceClassification
from .configuration_own import OwnConfig

class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig
"""
MAP = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForSequenceClassification": "modeling_own.OwnModel"}


@pytest.fixture(autouse=True)
def never_asked(monkeypatch):
    def ask(*_):
        raise AssertionError("a prompt")

    monkeypatch.setattr("builtins.input", ask)


@pytest.fixture
def own(tmp_path):
    folder = build_tiny_bert(tmp_path / "own")
    (folder / "configuration_own.py").write_text(CONFIG.format(ran=str(tmp_path / "ran")))
    (folder / "modeling_own.py").write_text(MODEL)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own_bert", "auto_map": MAP}))
    return folder


def read(folder, **settings):
    from transformers import AutoTokenizer

    section = ModelSection(path=str(folder), **settings)
    return Reading(section, None, lambda: AutoTokenizer)


def test_without_trust_it_is_refused_and_the_files_are_named(own, tmp_path):
    said = r"model.trust_remote_code: .*needs code of its own \(configuration_own.py, modeling_own.py\)"
    with pytest.raises(ConfigError, match=said):
        _ = read(own).config
    assert not (tmp_path / "ran").exists()


def test_with_trust_it_is_run(own, tmp_path):
    from transformers import AutoModelForSequenceClassification

    config = read(own, trust_remote_code=True).config
    assert type(config).__name__ == "OwnConfig"
    assert (tmp_path / "ran").exists()
    model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=True)
    assert type(model).__name__ == "OwnModel"


def test_its_identity_is_that_of_its_code(own):
    trusted = ModelSection(path=str(own), trust_remote_code=True)
    before = code_identity(trusted)
    assert before == code_identity(trusted) != ""
    with open(own / "modeling_own.py", "a") as file:
        file.write("# another\n")
    assert code_identity(trusted) != before
    assert code_identity(ModelSection(path=str(own))) == ""


def test_code_beside_a_model_that_transformers_has_itself_is_not_run(own, tmp_path):
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    found = load_config(ModelSection(path=str(own)))
    assert type(found).__name__ == "BertConfig"
    assert not hasattr(found, "auto_map")  # so that no later call runs or asks
    assert not (tmp_path / "ran").exists()


def test_trust_in_code_that_is_not_there_is_refused(tiny_bert):
    with pytest.raises(ConfigError, match=r"model.trust_remote_code: has no effect: neither model nor tokenizer"):
        _ = read(tiny_bert, trust_remote_code=True).config
