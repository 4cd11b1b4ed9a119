"""The bottleneck adapter: where it sits, what it computes, and that PEFT carries it like a method of its own."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    ModernBertConfig,
    ModernBertModel,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaModel,
)

from onecurve.adapters import add_adapter
from onecurve.adapters.bottleneck import BottleneckConfig, BottleneckModel
from onecurve.config import PeftSection

from .conftest import SIZES, bert, llama

TOKENS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)


def adapted(model: nn.Module, **fields) -> PeftModel:
    return get_peft_model(model, BottleneckConfig(task_type="CAUSAL_LM", **fields))


def _models():
    small = dict(vocab_size=64, max_position_embeddings=64)
    yield "bert", bert(), ("attention.output.dense", "output.dense")
    yield "roberta", RobertaModel(RobertaConfig(**SIZES)), ("attention.output.dense", "output.dense")
    distil = DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, **small)
    yield "distilbert", DistilBertForSequenceClassification(distil), ("attention.out_lin", "ffn.lin2")
    yield "llama", llama(), ("self_attn.o_proj", "mlp.down_proj")
    yield "qwen3", Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)), ("self_attn.o_proj", "mlp.down_proj")
    yield "phi3", Phi3ForCausalLM(Phi3Config(**SIZES, **TOKENS)), ("self_attn.o_proj", "mlp.down_proj")
    gpt2 = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    yield "gpt2", GPT2LMHeadModel(gpt2), ("attn.c_proj", "mlp.c_proj")
    yield "gpt_neox", GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)), ("attention.dense", "mlp.dense_4h_to_h")
    modern = ModernBertModel(ModernBertConfig(**SIZES, **TOKENS, cls_token_id=1, sep_token_id=2))
    yield "modernbert", modern, ("attn.Wo", "mlp.Wo")
    opt = OPTConfig(hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32)
    yield "opt", OPTForCausalLM(opt), ("self_attn.out_proj", "fc2")


@pytest.mark.parametrize(("name", "model", "outputs"), _models(), ids=lambda value: value if type(value) is str else "")
def test_houlsby_adapts_both_sub_layers_and_pfeiffer_the_second(name, model, outputs):
    config = BottleneckConfig(bottleneck_size=4)
    houlsby = get_peft_model(model, config).base_model.targeted_module_names
    assert len(houlsby) == 4
    assert [sum(n.endswith(f".{output}") for n in houlsby) for output in outputs[:1]] == [2]
    pfeiffer = BottleneckConfig(bottleneck_size=4, variant="pfeiffer")
    BottleneckModel._prepare_adapter_config(None, pfeiffer, {"model_type": name})
    chosen = [n for n in houlsby if BottleneckModel._check_target_module_exists(pfeiffer, n)]
    assert len(chosen) == 2
    assert all(n.endswith(outputs[1]) and not n.endswith(outputs[0]) for n in chosen)


def test_it_computes_the_formula_of_the_paper(batch):
    model = adapted(llama(), bottleneck_size=4, scaling=0.5, non_linearity="gelu", init_weights=False).eval()
    layer = model.base_model.model.model.layers[0].mlp.down_proj
    x = torch.randn(2, 3, 64)
    h = layer.base_layer(x)
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    expected = h + 0.5 * up(nn.functional.gelu(down(h)))
    torch.testing.assert_close(layer(x), expected)
    assert down.weight.shape == (4, 32)


def test_it_starts_as_the_base_and_leaves_it_when_disabled(batch):
    base = llama().eval()(**batch).logits
    model = adapted(llama(), reduction_factor=8).eval()
    assert torch.equal(model(**batch).logits, base)
    nn.init.ones_(model.base_model.model.model.layers[0].mlp.down_proj.bottleneck_up["default"].bias)
    assert not torch.allclose(model(**batch).logits, base)
    with model.disable_adapter():
        assert torch.equal(model(**batch).logits, base)


def test_the_width_is_a_size_or_a_share_of_the_hidden_size():
    assert BottleneckConfig(bottleneck_size=5).size(32) == 5
    assert BottleneckConfig(reduction_factor=4).size(32) == 8
    assert BottleneckConfig().size(32) == 2
    assert BottleneckConfig(reduction_factor=64).size(32) == 1


def test_dropout_acts_only_in_training(batch):
    model = adapted(llama(), bottleneck_size=4, dropout=0.5, init_weights=False)
    torch.manual_seed(0)
    one, two = model.train()(**batch).logits, model(**batch).logits
    assert not torch.equal(one, two)
    assert torch.equal(model.eval()(**batch).logits, model(**batch).logits)


def test_merging_it_says_why_it_cannot():
    model = adapted(llama(), bottleneck_size=4)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match="not linear"):
            merge()
    assert not any("bottleneck" in name for name, _ in model.unload().named_modules())


def test_named_targets_and_layers_take_the_place_of_the_variant():
    model = adapted(llama(), bottleneck_size=4, target_modules=["q_proj"], layers_to_transform=[1])
    assert model.base_model.targeted_module_names == ["model.layers.1.self_attn.q_proj"]


def test_a_target_that_is_not_linear_is_refused():
    with pytest.raises(ValueError, match="follows linear layers, not Embedding"):
        adapted(llama(), target_modules=["embed_tokens"])


def test_a_second_adapter_can_be_added_chosen_and_deleted(batch):
    model = adapted(llama(), bottleneck_size=4, init_weights=False).eval()
    first = model(**batch).logits
    model.add_adapter("other", BottleneckConfig(bottleneck_size=2, init_weights=False, task_type="CAUSAL_LM"))
    assert torch.equal(model.eval()(**batch).logits, first)
    model.set_adapter("other")
    assert not torch.allclose(model(**batch).logits, first)
    model.delete_adapter("other")
    assert torch.equal(model(**batch).logits, first)


def test_plain_transformers_loads_it_from_its_folder(batch, tmp_path):
    llama().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    torch.manual_seed(3)
    section = PeftSection(method="bottleneck", bottleneck_size=4, init_weights=False)
    model = add_adapter(base, section, task_type="CAUSAL_LM", new_modules=[]).eval()
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, rtol=0, atol=1e-6)
    assert not torch.allclose(loaded(**batch).logits, llama().eval()(**batch).logits, atol=1e-4)
