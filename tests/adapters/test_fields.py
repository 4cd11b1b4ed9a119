"""Every wrong `peft` section is one clear message, before any model exists."""

import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from onecurve.adapters import check_adapter, virtual_tokens
from onecurve.adapters.fields import build_config
from onecurve.adapters.refused import METHODS
from onecurve.config import PeftSection
from onecurve.errors import ConfigError


def message(**section) -> str:
    with pytest.raises(ConfigError) as caught:
        check_adapter(PeftSection(**section))
    return str(caught.value)


def test_an_unknown_method_is_answered_with_the_nearest():
    assert message(method="lroa") == "peft.method: 'lroa' is not a method of PEFT. Did you mean 'lora'?"
    assert message(method="randlroa").endswith("Did you mean 'randlora'?")
    assert message(method="DoRA").endswith("Write lora with use_dora: true.")
    assert "Known: adamss" in message(method="zzz")
    assert "xlora" not in message(method="zzz")


def test_a_methods_name_may_be_written_in_any_case():
    assert build_config(PeftSection(method="LoRA"), None).peft_type == "LORA"
    assert build_config(PeftSection(method="Bottleneck"), None).peft_type.value == "BOTTLENECK"


def test_an_unknown_field_is_answered_with_the_nearest():
    assert message(method="lora", rr=4) == "Unknown setting 'peft.rr'. Did you mean 'peft.r'?"
    assert "'peft.variant'" in message(method="bottleneck", varient="houlsby")


def test_what_the_run_knows_is_not_a_field():
    assert message(method="lora", task_type="SEQ_CLS").startswith("Unknown setting 'peft.task_type'.")


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("r", "x", "a whole number"),
        ("r", 1.5, "a whole number"),
        ("r", True, "a whole number"),
        ("lora_dropout", "much", "a number"),
        ("use_dora", 1, "true or false"),
        ("target_modules", 3, "a list of text or text"),
        ("target_modules", [3], "a list of text or text"),
        ("bias", "some", "one of none, all, lora_only"),
        ("rank_pattern", [1], "a map"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_the_rule(field, value, rule):
    assert message(method="lora", **{field: value}) == f"peft.{field}: must be {rule}; got {value!r}."


def test_all_problems_are_told_at_once():
    assert message(method="lora", r="x", aplha=2).count("\n") == 1


def test_values_that_yaml_can_write_are_accepted():
    check_adapter(None)
    check_adapter(PeftSection(method="lora", r=4, lora_alpha=8, lora_dropout=0, target_modules=["q_proj", "v_proj"]))
    check_adapter(PeftSection(method="lora", use_dora=True, init_lora_weights="gaussian"))
    check_adapter(PeftSection(method="lora", layer_replication=[[0, 2], [0, 2]], rank_pattern={"q_proj": 2}))


def test_peft_s_own_refusal_is_passed_on():
    assert message(method="prompt_tuning", num_virtual_tokens=4, prompt_tuning_init="TEXT").startswith(
        "peft: invalid settings of prompt_tuning: When prompt_tuning_init='TEXT'"
    )
    assert "set bottleneck_size or reduction_factor" in message(
        method="bottleneck", bottleneck_size=4, reduction_factor=4
    )


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"variant": "parallel"}, "must be one of houlsby, pfeiffer"),
        ({"bottleneck_size": 0}, "must be greater than 0"),
        ({"dropout": 1.0}, "less than 1"),
        ({"non_linearity": "reluu"}, "non_linearity must be one of"),
        ({"layers_to_transform": [0]}, "only with a list of target_modules"),
    ],
)
def test_a_bottleneck_s_impossible_values_are_refused(section, words):
    assert words in message(method="bottleneck", **section)


def test_a_prompt_s_length_must_be_said():
    assert message(method="p_tuning") == "Missing setting 'peft.num_virtual_tokens': p_tuning needs it."
    assert "'peft.adapter_len'" in message(method="adaption_prompt")


@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_this_loop_cannot_train_is_refused_with_its_reason(method):
    assert method.upper() in {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert message(method=method) == f"peft.method: {method} is not supported: {METHODS[method]}."


@pytest.mark.parametrize(
    "section",
    [
        {"method": "lora", "init_lora_weights": "eva"},
        {"method": "lora", "init_lora_weights": "lora_ga"},
        {"method": "lora", "init_lora_weights": "pissa_niter_4"},
        {"method": "lora", "kasa_config": {"beta": 0.1}},
        {"method": "adamss", "use_asa": True},
    ],
)
def test_a_setting_that_would_train_something_else_is_refused(section):
    assert "is not supported" in message(**section)


def test_the_recipe_s_own_lists_are_never_changed():
    section = PeftSection(method="lora", modules_to_save=["embed_tokens"])
    build_config(section, "SEQ_CLS").modules_to_save.append("score")
    assert section.extras["modules_to_save"] == ["embed_tokens"]


def test_virtual_tokens_are_counted_only_where_they_take_positions():
    assert virtual_tokens(PeftSection(method="Prefix_Tuning", num_virtual_tokens=7)) == 7
    assert virtual_tokens(PeftSection(method="lora")) == virtual_tokens(None) == 0


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"method": "lora", "r": 0}, "peft.r: must be greater than 0; got 0."),
        ({"method": "loha", "r": -3}, "peft.r: must be greater than 0; got -3."),
        ({"method": "lora", "lora_alpha": 0}, "peft.lora_alpha: must be greater than 0; got 0."),
        ({"method": "lora", "lora_dropout": 1.5}, "peft.lora_dropout: must be at least 0 and less than 1; got 1.5."),
        ({"method": "lora", "lora_dropout": -0.1}, "peft.lora_dropout: must be at least 0 and less than 1; got -0.1."),
        ({"method": "prefix_tuning", "num_virtual_tokens": 0}, "peft.num_virtual_tokens: must be greater than 0"),
        ({"method": "oft", "r": -1}, "peft.r: must be 0 or more; got -1."),
    ],
)
def test_a_number_out_of_range_is_refused_without_a_model(section, said):
    assert said in message(**section)


def test_zero_is_a_rank_where_it_means_that_the_rank_is_derived():
    assert build_config(PeftSection(method="oft", r=0, oft_block_size=32), None).r == 0


def test_fields_of_another_method_come_with_how_to_replace_the_section():
    said = message(method="ia3", r=8, lora_alpha=16).splitlines()
    assert [line.partition(".")[0] for line in said[:2]] == ["Unknown setting 'peft"] * 2
    assert said[2] == "To replace the whole section on the command line: --peft '{method: ia3, ...}'."
