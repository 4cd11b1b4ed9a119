"""Models that cannot draw one curve are refused from their config alone, with the reason."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BigBirdConfig,
    FNetConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Mistral3Config,
    XmodConfig,
)

from onecurve.config import Recipe
from onecurve.errors import ConfigError
from onecurve.model.architectures import check_architecture
from tests.zoo.building import build
from tests.zoo.families import CAUSAL as FAMILIES


def check(config: Any, auto_model: Any = AutoModelForSequenceClassification, **sections: Any) -> None:
    recipe = Recipe.model_validate(
        {
            "output_dir": "unused",
            "task": {"name": "text_classification"},
            "model": {"path": "a/model"},
            "data": {"train": "unused"},
            "train": {"max_steps": 1, "global_batch_size": 8, **sections.pop("train", {})},
            **sections,
        }
    )
    check_architecture(recipe, auto_model, config)


ALONE = {"micro_batch_size": 1}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            FNetConfig(),
            r"^train.micro_batch_size: 'a/model' .*type fnet, whose result .* depends on the padding",
        ),
        (BigBirdConfig(), r"model.path: .* attention_type in its config.json to original_full"),
        (XmodConfig(languages=["en_XX", "de_DE"]), r"model.path: .* default_language there, to one of en_XX, de_DE"),
        (XmodConfig(languages=["en_XX"], default_language="fr_XX"), r"default_language there, to one of en_XX\."),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_what_the_config_tells_is_refused(config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(config)


def test_a_model_that_the_task_has_no_class_for_is_named() -> None:
    with pytest.raises(ConfigError, match="of type mistral3, for which transformers has no AutoModelForCausalLM"):
        check(Mistral3Config(), AutoModelForCausalLM)


def test_the_text_part_of_a_model_that_reads_images_is_saved_as_the_readme_shows(tmp_path: Path) -> None:
    folder = build(FAMILIES["Mistral 3"], tmp_path / "whole")
    with pytest.raises(ConfigError, match=r"Its text part, of type mistral, can be trained.* under Loading a model"):
        check(AutoConfig.from_pretrained(folder), AutoModelForCausalLM)
    readme = Path(__file__).parents[2] / "README.md"
    code = next(c for c in re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL) if "language_model" in c)
    exec(code, names := {"PATH": folder, "FOLDER": tmp_path / "text"})
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "text")
    check(saved.config, AutoModelForCausalLM)
    ids = torch.arange(5, 13).view(1, -1)
    with torch.no_grad():
        assert torch.equal(saved(ids).logits, names["whole"](ids).logits)


def test_a_task_may_name_a_model_class_itself() -> None:
    check(LlamaConfig(), LlamaForCausalLM)


def test_one_text_a_pass_has_no_padding_to_read() -> None:
    check(FNetConfig(), train=ALONE)
    with pytest.raises(ConfigError, match="depends on the padding"):
        check(FNetConfig(), train=ALONE, eval={"micro_batch_size": 4})
    with pytest.raises(ConfigError, match=r"^train.micro_batch_tokens: .* depends on the padding"):
        check(FNetConfig(), train={"micro_batch_size": None, "micro_batch_tokens": 100})


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(),
        LlamaConfig(),
        BigBirdConfig(attention_type="original_full"),
        XmodConfig(languages=["en_XX"], default_language="en_XX"),
    ],
)
def test_others_pass(config: Any) -> None:
    check(config)
