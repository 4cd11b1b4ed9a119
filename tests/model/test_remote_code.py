"""A model that needs code of its own: refused without a prompt, or run and identified where the recipe trusts it."""

import json
import re

import pytest

from onecurve.adapters import add_adapter
from onecurve.cli import main
from onecurve.config import ModelSection, PeftSection, TaskSection
from onecurve.errors import ConfigError
from onecurve.export.model_folder import save_alone
from onecurve.model.reading import Reading, load_config
from onecurve.model.remote_code import check_flag, code_identity
from onecurve.model.task_file import TaskFile
from onecurve.tasks import load_task
from onecurve.tasks.base import Survey
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


# What was trained with it is used afterwards by a flag


@pytest.fixture
def trained(own, tmp_path):
    """A folder as a run writes it: whole, or an adapter on the model with code of its own."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    def save(adapted: bool):
        model = AutoModelForSequenceClassification.from_pretrained(own, trust_remote_code=True, num_labels=2)
        if adapted:
            peft = PeftSection(method="lora", target_modules=["query"])
            model = add_adapter(model, peft, task_type="SEQ_CLS", new_modules=["classifier"])
        task = load_task(TaskSection(name="text_classification"))
        told = TaskFile.of("text_classification", task, Survey(["down", "up"]), {}, 100)
        save_alone(tmp_path / "saved", model, AutoTokenizer.from_pretrained(own), str, told)
        (tmp_path / "ran").unlink(missing_ok=True)
        return tmp_path / "saved"

    return save


@pytest.mark.parametrize("adapted", [False, True], ids=["whole", "adapter"])
def test_a_trained_model_is_asked_and_converted_only_by_a_flag(trained, adapted, tmp_path, capsys):
    folder, target = trained(adapted), tmp_path / "converted"
    convert = ["checkpoint", "convert", str(folder), str(target), *(["--merge"] if adapted else [])]
    for command in (["predict", str(folder), "the dog"], convert):
        assert main(command) == 2
        assert "--trust_remote_code: '" in (said := capsys.readouterr().err)
        assert "configuration_own.py, modeling_own.py" in said and "give --trust_remote_code" in said
        assert not (tmp_path / "ran").exists()
    assert main([*convert, "--trust_remote_code"]) == 0
    capsys.readouterr()
    for model in (folder, target):
        assert main(["predict", str(model), "the dog", "--trust_remote_code", "--task", "text_classification"]) == 0
        assert capsys.readouterr().out.split()[0] in ("down", "up", "LABEL_0", "LABEL_1")
    assert (tmp_path / "ran").exists()


def test_the_card_of_such_a_model_loads_it(trained):
    (code,) = re.findall(r"```python\n(.*?)```", (trained(False) / "README.md").read_text(), re.DOTALL)
    exec(code, names := {})
    assert type(names["pipe"].model).__name__ == "OwnModel"


def test_a_flag_without_such_code_is_refused(tiny_bert, capsys):
    assert main(["predict", str(tiny_bert), "the dog", "--trust_remote_code"]) == 2
    assert "has no effect: neither model nor tokenizer has code" in (said := capsys.readouterr().err)
    assert "Leave it out." in said


def test_a_checkpoint_of_a_run_that_trusted_code_takes_the_flag_too(own):
    section = ModelSection(path=str(own), trust_remote_code=True)
    with pytest.raises(ConfigError, match="needs code of its own"):
        check_flag(section, given=False)
    check_flag(section, given=True)
