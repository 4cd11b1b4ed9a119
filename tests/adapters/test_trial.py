"""An adapter that does not fit is refused on a model without weights, which stays as it is."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from onecurve.adapters import try_adapter
from onecurve.config import PeftSection
from onecurve.errors import ConfigError


@pytest.fixture(scope="module")
def skeleton(tiny_bert):
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(tiny_bert))


def attempt(skeleton, **section):
    try_adapter(skeleton, PeftSection(**section), "SEQ_CLS", ["classifier"])


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (
            {"target_modules": ["q_proj", "v_proj"]},
            "peft.target_modules: no module of BertForSequenceClassification is "
            "called q_proj, v_proj. Its linear layers are query, key, value, dense, classifier",
        ),
        ({"target_modules": ["query", "v_proj"]}, "is called v_proj"),  # PEFT takes query and says nothing
        ({"target_modules": "q_proj"}, "is called q_proj"),
        ({"target_modules": ".*["}, "'.*[' is not a regular expression"),
        ({"modules_to_save": ["nothing"]}, "peft.modules_to_save: no module of"),
        ({"target_modules": ["query"], "exclude_modules": ["query"]}, "peft.method: lora does not fit"),
        ({"target_modules": ["LayerNorm"]}, "peft.method: lora does not fit"),
    ],
)
def test_what_does_not_fit_is_refused(skeleton, section, said):
    with pytest.raises(ConfigError) as error:
        attempt(skeleton, method="lora", **section)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "section",
    [
        {"method": "lora"},
        {"method": "lora", "target_modules": "all-linear"},
        {"method": "lora", "target_modules": ".*query"},
        {"method": "lora", "init_lora_weights": "pissa", "target_modules": ["attention.self.query"]},
        {"method": "ia3"},
        {"method": "prefix_tuning", "num_virtual_tokens": 2},
        {"method": "bottleneck"},
        {"method": "shira", "r": 2},  # these three compute from the base's weights, which are not there yet
        {"method": "frod"},
        {"method": "adamss"},
    ],
)
def test_what_fits_leaves_the_model_as_it_is(skeleton, section):
    before = [name for name, _ in skeleton.named_modules()]
    attempt(skeleton, **section)
    assert [name for name, _ in skeleton.named_modules()] == before
    assert all(parameter.is_meta for parameter in skeleton.parameters())
