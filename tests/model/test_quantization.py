"""A quantised base: what it refuses, and that nothing but the recipe decides what is computed with it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from onecurve.config import Recipe, TaskSection
from onecurve.errors import ConfigError, LaunchError
from onecurve.model import quantization
from onecurve.model.loading import check_model, load_model
from onecurve.strategies import check_strategy
from onecurve.tasks import load_task
from onecurve.tasks.base import Survey

LORA = {"method": "lora"}
KINDS = ("nf4", "int8")


def recipe(model: Path, quantization: str, peft: dict[str, Any] = LORA, **section) -> Recipe:
    return Recipe.model_validate(
        {
            "output_dir": "unused",
            "task": {"name": "causal_lm"},
            "model": {"path": str(model), "quantization": quantization, **section},
            "data": {"train": "unused"},
            "peft": peft or None,
            "train": {"max_steps": 1, "global_batch_size": 2, "micro_batch_size": 2},
        }
    )


def build(model: Path, quantization: str, precision: str = "no", task: str = "causal_lm", **sections):
    read = recipe(model, quantization, **sections)
    survey = Survey(["a", "b"]) if task == "text_classification" else Survey()
    return load_model(read, load_task(TaskSection(name=task)), AutoConfig.from_pretrained(model), survey, precision)


@pytest.fixture(scope="module", autouse=True)
def _bitsandbytes():
    pytest.importorskip("bitsandbytes", reason="needs the extra quant")


@pytest.mark.parametrize("sections", [{"peft": {}}, {"init": "random"}])
def test_only_pretrained_frozen_weights_are_quantised(tiny_llama, sections):
    with pytest.raises(ValueError, match="needs frozen pretrained weights"):
        recipe(tiny_llama, "nf4", **sections)


def test_a_missing_package_is_named_with_its_extra_before_anything_is_loaded(tiny_llama, monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(LaunchError, match=r'model.quantization: nf4 needs .* `pip install "onecurve\[quant\]"`'):
        check_model(recipe(tiny_llama, "nf4"))


def test_methods_that_would_take_codes_for_weights_are_refused(tiny_llama):
    for section in ({"method": "hra"}, {"method": "loha"}):
        with pytest.raises(ConfigError, match="does not work on quantised layers"):
            check_model(recipe(tiny_llama, "int8", section))
    for section in ({"method": "ia3"}, {"method": "bottleneck"}, {"method": "prefix_tuning", "num_virtual_tokens": 2}):
        check_model(recipe(tiny_llama, "int8", section))


def test_codes_are_not_trained_as_a_copy(tiny_llama):
    with pytest.raises(ConfigError, match=r"modules_to_save has model.layers.0.mlp.up_proj, which .* in codes"):
        build(tiny_llama, "nf4", peft={"method": "lora", "modules_to_save": ["up_proj"]})
    assert build(tiny_llama, "nf4", peft={"method": "lora", "modules_to_save": ["lm_head"]})


def test_zero_3_is_refused_and_zero_2_is_not(tiny_llama, monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "zero.json"))
    for stage in (2, 3):
        (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        if stage == 3:
            with pytest.raises(ConfigError, match=r"model.quantization: ZeRO-3 .* Use ZeRO-2 or DDP"):
                check_strategy(recipe(tiny_llama, "nf4"))
        else:
            check_strategy(recipe(tiny_llama, "nf4"))


@pytest.mark.parametrize("asked", ["nf4", None])
def test_a_model_that_is_stored_quantised_is_refused(asked):
    section = recipe(Path("stored"), "nf4").model.model_copy(update={"quantization": asked})
    with pytest.raises(ConfigError, match="'stored' is already quantised"):
        quantization.quantized_loading(section, None, SimpleNamespace(quantization_config={}), torch.float32)


def frozen(model) -> dict[str, torch.Tensor]:
    """Everything of the base that a pass computes with: codes, and the scales they lie beside."""
    found = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            found[name] = parameter.detach().clone()
            if state := getattr(parameter, "quant_state", None):
                found |= {f"{name}.{key}": value.clone() for key, value in state.as_dict(packed=True).items()}
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_scoring_leaves_the_base_as_it_was(tiny_llama, kind, precision):
    model = build(tiny_llama, kind, precision)
    before = frozen(model)
    ids = torch.arange(5, 21).view(2, 8)
    with torch.no_grad():
        model.eval()(input_ids=ids)
    after = frozen(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    codes = [p for p in model.parameters() if not p.is_floating_point()]
    assert len(codes) == 14, "nothing was quantised"
    assert not hasattr(model.config, "quantization_config")


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_does_not_depend_on_which_others_it_is_computed_with(tiny_llama, kind):
    model = build(tiny_llama, kind).eval()
    embedded = model.get_input_embeddings()(torch.arange(5, 21).view(2, 8)).detach()
    embedded[1, :, 3] *= 1e4  # an outlier for LLM.int8, behind whatever normalisation
    with torch.no_grad():
        torch.testing.assert_close(
            model(inputs_embeds=embedded).logits[0], model(inputs_embeds=embedded[:1]).logits[0], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_head_of_several_layers_is_trained_and_not_quantised(tmp_path, kind):
    from transformers import RobertaConfig, RobertaModel

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    RobertaModel(RobertaConfig(vocab_size=32, **sizes)).save_pretrained(tmp_path)
    model = build(tmp_path, kind, task="text_classification")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    for layer in ("dense", "out_proj"):
        assert f"base_model.model.classifier.modules_to_save.default.{layer}.weight" in trained
    assert sum(not p.is_floating_point() for p in model.parameters()) == 6


def test_what_is_new_inside_the_base_is_refused(tmp_path, tiny_bert):
    from transformers import BertConfig, BertForMaskedLM

    BertForMaskedLM(BertConfig.from_pretrained(tiny_bert)).save_pretrained(tmp_path)  # which has no pooler
    with pytest.raises(ConfigError, match=r"the checkpoint has no bert.pooler.dense"):
        build(tmp_path, "nf4", task="text_classification")


def test_parameters_are_counted_as_weights(tiny_llama):
    for kind in KINDS:
        whole = build(tiny_llama, kind)
        frozen_weights = sum(quantization.num_weights(p) for p in whole.parameters() if not p.requires_grad)
        assert frozen_weights == 115_008
